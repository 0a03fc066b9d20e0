"""The table of studies says what each of them has found."""

import shutil
from pathlib import Path

import optuna
import pytest
from support.manifests import make_manifest, make_space

from study.config.plan import Design, Plan, probe_recipe
from study.results.arrays import plain
from study.results.metrics import EpochResult
from study.results.record import Record
from study.upkeep.inventory import describe
from study.verdict.statistics import Difference
from study.verdict.verdict import Comparison, Side, Verdict

RECORDS = Path(__file__).parents[1] / "records"


@pytest.mark.parametrize(
    ("name", "best", "test"),
    [
        ("baseline", "", "mobilenet_v3_small 9.72%, resnet18 48.61%"),
        ("search", "68.97%", "baseline 61.81%"),
        ("killed", "58.62%", ""),
    ],
)
def test_table_names_the_recipe_that_the_study_answers_with(name, best, test, tmp_path):
    """The winner's accuracy would say nothing of the model that a search keeps where it is not shown to be better."""
    entry = describe(shutil.copytree(RECORDS / name, tmp_path / name))
    assert (entry.best, entry.test) == (best, test)


def run_two(directory, design, verdict=None):
    """Run the first two trials of a study, of which the second one has the better validation result."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record.create(directory, make_manifest(design))
    record.add(Plan(None, design.stage, recipe, 0) for recipe in design.recipes)
    for loss, confusion in ((0.9, [[9, 1], [4, 0]]), (0.5, [[9, 1], [2, 2]])):
        plan = record.next_trial()
        for epoch in range(1, plan.recipe.epochs + 1):
            record.epoch(plan, EpochResult(epoch, 1.0, 1.0, 1.0, val_loss=loss, val_confusion=confusion))
        record.complete(plan)
    if verdict:
        record.note("verdict", plain(verdict))
    record.close()
    return directory


METRICS = [("accuracy", "78.57%"), ("balanced_accuracy", "balanced accuracy 70.00%"), ("log_loss", "log loss 0.5000")]


@pytest.mark.parametrize(("metric", "best"), METRICS)
def test_table_names_the_metric_of_a_search_unless_accuracy(metric, best, tmp_path):
    space = make_space()
    design = Design("search", (space.base,), space, metric=metric)
    assert describe(run_two(tmp_path / "search", design)).best == best


@pytest.mark.parametrize(
    ("decision", "shown"), [("better", "winner macro F1 60.00%"), (None, "baseline macro F1 40.00%")]
)
def test_table_shows_a_search_by_its_metric_on_test_images(decision, shown, tmp_path):
    baseline, winner = (Side([0.7], 0.7, None, [[7, 0], [3, 0]], [value]) for value in (0.4, 0.6))
    comparison = Comparison(winner, Difference(0.2, 0.1, 0.3), [0.01], [[0, 0], [0, 0]], None, None)
    verdict = Verdict(decision, None, 1, {}, 0.9, None, [0], 1, [], baseline, comparison, metric="macro_f1")
    space = make_space()
    directory = run_two(tmp_path / "search", Design("search", (space.base,), space, metric="macro_f1"), verdict)
    assert describe(directory).test == shown


@pytest.mark.parametrize(("metric", "best"), METRICS)
def test_table_shows_the_best_probe(metric, best, tmp_path, make_recipe):
    recipes = tuple(probe_recipe(make_recipe(model=model)) for model in ("resnet18", "vgg11"))
    entry = describe(run_two(tmp_path / "probe", Design("probe", recipes, metric=metric)))
    assert (entry.kind, entry.best, entry.test) == ("probe", best, "")
