"""The time left follows from the trials so far, the budget, and the refits that the verdict needs."""

from dataclasses import replace

import pytest
from support.manifests import make_space

from study.config.plan import Design, Plan
from study.config.search_space import Budget
from study.results.metrics import EpochResult
from study.results.trial_record import TrialRecord
from study.verdict.estimate import Estimate, estimate


@pytest.fixture
def design(make_recipe):
    """Of nine trials, three repeats and no re-ranking."""
    space = replace(make_space(), budget=Budget(9, None))
    return Design("search", (make_recipe(epochs=4),), space, 3)


@pytest.fixture
def trial(make_recipe):
    """Make a trial whose epochs took 10 s each."""

    def make(epochs, state="complete", stage="search", number=0, lr=1e-3):
        results = tuple(EpochResult(at, 1.0, 10.0, 5.0) for at in range(1, epochs + 1))
        plan = Plan(number, stage, make_recipe(epochs=4, lr=lr), 0)
        return TrialRecord(plan, state, None, results, (), None, 0, None, {}, None, None)

    return make


def left(design, trials, at_once=1, spent_s=0.0, search_ended=False):
    return estimate(design, trials, spent_s=spent_s, at_once=at_once, search_ended=search_ended)


def test_estimate_is_unknown_before_the_first_epoch(design, trial):
    assert left(design, [trial(0, "running")]) is None
    assert left(replace(design, space=None), [trial(4)]) is None


def test_estimate_counts_remaining_trials_and_refits(design, trial):
    assert left(design, [trial(4), trial(4)]) == Estimate(7 * 40 + 6 * 40, 7 * 40 + 6 * 40)


def test_estimate_allows_for_what_pruning_saves(design, trial):
    assert left(design, [trial(4), trial(1, "pruned")]) == Estimate(7 * 25 + 6 * 40, 7 * 25 + 6 * 40)


def test_estimate_counts_what_is_left_of_running_trials(design, trial):
    assert left(design, [trial(4), trial(3, "running")]).low_s == 7 * 40 + 10 + 6 * 40


def test_estimate_is_a_range_while_seeds_are_open(design, trial):
    assert left(replace(design, repeats="auto"), [trial(4)]) == Estimate(8 * 40 + 4 * 40, 8 * 40 + 12 * 40)


def test_estimate_counts_the_reranking(design, trial):
    assert left(replace(design, rerank=3), [trial(4)]).low_s == 8 * 40 + (6 + 6) * 40


def test_estimate_divides_by_the_trials_at_once(design, trial):
    assert left(design, [trial(4)], at_once=2).low_s == (8 * 40 + 6 * 40) / 2


def test_estimate_ends_the_search_with_its_budget(design, trial):
    limited = replace(design, space=replace(design.space, budget=Budget(9, 100.0)))
    assert left(limited, [trial(4)], spent_s=70.0).low_s == 30 + 6 * 40


@pytest.fixture
def refits(trial):
    """Make the planned refits of a verdict, of which the first are done."""

    def make(planned, done, rates=(1e-3, 1e-4)):
        progress = [(4, "complete")] * done + [(0, "waiting")] * (planned - done)
        finals = [trial(*each, stage="final", lr=rates[at % len(rates)]) for at, each in enumerate(progress)]
        return [trial(4), *finals]

    return make


def test_estimate_after_the_search_has_refits_only(design, refits):
    assert left(design, refits(6, done=1), search_ended=True) == Estimate(5 * 40, 5 * 40)


def test_slow_refits_take_no_time_from_those_to_come(design, trial):
    """Nor does one that was reused, or failed at once, add to it."""
    usual = trial(4, stage="final")
    slow = replace(usual, epochs=tuple(replace(epoch, epoch_s=100.0) for epoch in usual.epochs))
    progress = [(0, "failed"), (2, "running"), *[(0, "waiting")] * 3]
    trials = [trial(4), slow, *(trial(*each, stage="final") for each in progress)]
    whole_s = (40 + 400 + 40) / 3
    assert left(design, trials, search_ended=True).low_s == pytest.approx(whole_s - 20 + 3 * whole_s)


def test_estimate_counts_the_baseline_alone_where_it_won(design, refits):
    trials = refits(3, done=2, rates=[1e-3])
    for repeats in (3, "auto"):
        assert left(replace(design, repeats=repeats), trials, search_ended=True) == Estimate(40, 40)


def test_estimate_has_at_least_the_planned_pairs(design, refits):
    trials = refits(6, done=5)
    assert left(replace(design, repeats="auto"), trials, search_ended=True) == Estimate(40, 7 * 40)


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((300, 310), "about 5m10s left"),
        ((300, 540), "about 5m00s to 9m00s left"),
        ((0, 540), "at most 9m00s left"),
        ((0, 0), "about 0s left"),
    ],
)
def test_estimate_says_about(bounds, text):
    assert str(Estimate(*bounds)) == text


def test_estimate_leaves_probes_out(design, trial):
    """A probe of 10 s is neither a trial of the search nor one of its refits."""
    trials = [trial(4), trial(4)]
    assert left(design, [trial(1, stage="screen"), *trials]) == left(design, trials)
