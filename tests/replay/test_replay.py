"""What docs/sampler-and-pruner.md claims, on the recorded curves; nothing is trained."""

import itertools
import math
import statistics
import warnings

import optuna
import pytest
from scipy.stats import spearmanr
from support.replay import AGAIN, BASELINE, first_recipes, load_tables, run

from study.results.optuna_adapters import HOPELESS, GuardedPruner

TABLES = load_tables()
TASKS = [table for name, table in TABLES.items() if name != AGAIN]
SEEDS = range(3)


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        yield


def mean(values):
    return statistics.mean(values)


def test_tables_hold_the_whole_grid():
    assert {len(table.curves) for table in TABLES.values()} == {56}
    assert all(table.snap(BASELINE) in table.curves for table in TABLES.values())


def test_replay_of_a_seed_is_always_the_same():
    assert run(TASKS[0], 3, 12).trials == run(TASKS[0], 3, 12).trials


def test_replay_runs_trials_at_a_time():
    alone, two = (run(TASKS[0], 0, 8, workers=workers, pruner=optuna.pruners.NopPruner()) for workers in (1, 2))
    assert max(ran.ended for ran in two.trials) < 0.8 * max(ran.ended for ran in alone.trials)


@pytest.fixture(scope="module")
def searches():
    """Searches of 20 trials as a study runs them, and without a pruner."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        pairs = [(table, seed) for table in TASKS for seed in SEEDS]
        return [[run(table, seed, 20, pruner=of) for table, seed in pairs] for of in (None, optuna.pruners.NopPruner())]


def test_default_is_near_the_best_after_twenty_trials(searches):
    """Within two points of the best of 56 recipes, on average over tasks and seeds."""
    pruned, _ = searches
    assert mean(done.regret(20) for done in pruned) < 0.02


def test_pruner_spares_epochs_and_loses_less_than_a_point(searches):
    pruned, kept = searches
    assert mean(done.epochs(20) for done in pruned) < 0.75 * mean(done.epochs(20) for done in kept)
    assert mean(done.test_regret(20) for done in pruned) < mean(done.test_regret(20) for done in kept) + 0.01


def test_ending_hopeless_trials_finds_good_recipes_sooner():
    """After four durations of the baseline's trial: better by a point on average than with halving alone."""
    found = {}
    for share in (HOPELESS, -math.inf):
        found[share] = []
        for table, seed in itertools.product(TASKS, range(6)):
            halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
            done = run(table, seed, 20, pruner=GuardedPruner(halving, table.guess, share))
            found[share].append(done.regret(done.ended_by(4)))
    assert mean(found[HOPELESS]) < mean(found[-math.inf]) - 0.01


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_parts_of_an_epoch_predict_worse_than_epochs(table):
    curves = [*table.curves.values()]
    final = [curve.final for curve in curves]
    quarter, half, one, two = (
        spearmanr([curve.accuracy[curve.rungs(first)[place][0]] for curve in curves], final).statistic
        for first, place in ((0.25, 0), (0.5, 0), (1, 0), (1, 1))
    )
    assert quarter < half < one < two
    assert half < 0.75 and two > 0.85


def test_orders_of_recipes_agree_between_tasks():
    finals = [[table.curves[key].final for key in TASKS[0].curves] for table in TASKS]
    assert min(spearmanr(one, other).statistic for one, other in itertools.combinations(finals, 2)) > 0.8


def test_recipes_of_other_tasks_beat_the_baseline():
    """The better of two recipes, by five points on average."""
    gains = []
    for table in TASKS:
        others = [other for other in TASKS if other is not table]
        finals = [table.curves[table.snap(values)].final for values in first_recipes(table, others, 0, 2)]
        gains.append(max(finals) - table.curves[table.snap(BASELINE)].final)
    assert mean(gains) > 0.05


def test_probe_beats_every_recipe_except_on_digits():
    assert [name for name, table in TABLES.items() if table.probe.test_accuracy <= table.best_test] == ["digits"]
