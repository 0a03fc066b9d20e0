"""Probes before a search: which models are worth fine-tuning, and which recipes are tried first."""

import dataclasses

import optuna
import pytest
from support.manifests import make_manifest, make_space, small_recipe
from support.probes import run_probes

from study.config.load_toml import load_portfolio, load_space
from study.config.plan import Design
from study.config.search_space import Budget, Categorical, Float, Int
from study.results.record import Record
from study.verdict.screen import (
    first_proposals,
    plan_first_trials,
    plan_screens,
    probe_cells,
    probe_rows,
    probe_sentence,
    promising_models,
)

MODELS = ("resnet18", "mobilenet_v3_small", "vgg11", "efficientnet_b0")


@pytest.fixture
def record(tmp_path):
    """A search over four models."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    domains = {"model": Categorical(MODELS), "lr": Float(1e-5, 1.0)}
    space = make_space(domains=domains, budget=Budget(6))
    record = Record.create(tmp_path / "search", make_manifest(Design("search", (space.base,), space, 1)))
    yield record
    record.close()


def test_each_model_is_probed_without_fine_tuning(record):
    plans = plan_screens(record.manifest.design, seed=0)
    assert [plan.recipe.model for plan in plans] == [*MODELS]
    assert {(plan.recipe.unfreeze_depth, plan.recipe.augmentation, plan.recipe.epochs) for plan in plans} == {
        (0, "none", 1)
    }


def test_search_proposes_nothing_before_the_probes_decide(record):
    run_probes(record, 90, 80, 70, 60)
    assert record.next_trial() is None


def test_models_far_behind_are_hopeless(record):
    """19 errors are not twice the best one's 10; 30 are, and the intervals lie apart."""
    run_probes(record, 90, 89, 81, 70)
    assert promising_models(record) == ["resnet18", "mobilenet_v3_small", "vgg11"]
    assert [row.hopeless for row in probe_rows(record)] == [False, False, False, True]


def test_model_whose_probe_failed_is_not_searched(record):
    run_probes(record, 80, None, 90, 85)
    assert promising_models(record) == ["vgg11", "efficientnet_b0", "resnet18"]


def test_all_models_stay_where_no_probe_is_complete(record):
    run_probes(record, None, None, None, None)
    assert promising_models(record) == [*MODELS]


def test_search_chooses_among_the_models_that_are_kept(record):
    run_probes(record, 90, 89, 30, 20)
    record.keep_models(promising_models(record))
    record.add(plan_first_trials(record))
    models = {record.next_trial().recipe.model for _ in range(6)}
    assert models <= {"resnet18", "mobilenet_v3_small"}


def test_kept_models_are_read_again_from_the_record(record):
    run_probes(record, 90, 89, 30, 20)
    record.keep_models(promising_models(record))
    assert Record.read(record.directory).space.models == ("resnet18", "mobilenet_v3_small")


def test_probe_sentence_names_what_is_not_shown_to_be_worse(record):
    run_probes(record, 90, 89, 50, 40)
    assert probe_sentence(probe_rows(record), "accuracy") == (
        "resnet18 has the most useful features: a linear classifier of them is right on 90.00% of the validation images"
        " (95 % interval 82.6% to 94.5%). Not shown to be worse: mobilenet_v3_small."
    )


def test_probe_sentence_names_the_metric_that_ranks(record):
    run_probes(record, 90, 89, 50, 40)
    assert probe_sentence(probe_rows(record), "balanced_accuracy").startswith(
        "resnet18 has the most useful features: a linear classifier of them has a balanced accuracy of "
    )


def test_probes_that_guess_are_said_to_have_learnt_nothing(record):
    run_probes(record, 50, 50, 40, 40)
    rows = probe_rows(record)
    assert probe_sentence(rows, "accuracy").startswith("No probe has learnt anything: in that of resnet18, the first, ")
    assert all(probe_cells(row, "accuracy")[1].endswith("\nlearnt nothing") for row in rows)


def test_probe_cells_show_whole_images_per_second(record):
    run_probes(record, 90, 89, 50, 40)
    row = probe_rows(record)[0]
    shown = [
        probe_cells(dataclasses.replace(row, predict_images_per_s=speed), "accuracy")[-1] for speed in (2391.3, 12.34)
    ]
    assert shown == ["2,391", "12.3"]


SPACE = make_space(
    domains={"lr": Float(1e-5, 1e-2), "unfreeze_depth": Int(0, 3)}, base=small_recipe(), budget=Budget(20)
)


def propose(*portfolio, space=SPACE, models=("resnet18",)):
    return first_proposals(space, models, portfolio, without=space.base)


def test_first_proposals_keep_the_other_values_of_the_space():
    (recipe,) = propose({"lr": 1e-4, "unfreeze_depth": 3})
    assert recipe == dataclasses.replace(SPACE.base, lr=1e-4, unfreeze_depth=3)


@pytest.mark.parametrize("values", [{"lr": 0.1}, {"optimizer": "sgd"}, {"lr": 1e-3}], ids=["domain", "fixed", "known"])
def test_first_proposals_leave_out_what_does_not_apply(values):
    """A rate outside its domain, an optimizer that is not searched, and the baseline itself."""
    assert propose(values) == []


def test_first_proposals_try_each_recipe_on_the_best_model_first():
    space = dataclasses.replace(SPACE, domains={**SPACE.domains, "model": Categorical(("vgg11", "resnet18"))})
    found = propose({"lr": 1e-4}, {"lr": 1e-5}, space=space, models=("vgg11", "resnet18"))
    assert [(recipe.model, recipe.lr) for recipe in found] == [
        ("vgg11", 1e-4), ("resnet18", 1e-4), ("vgg11", 1e-5), ("resnet18", 1e-5)
    ]  # fmt: skip


def test_first_proposals_take_at_most_a_third_of_the_trials():
    portfolio = [{"lr": 1e-4 * step} for step in range(1, 10)]
    assert len(propose(*portfolio, space=dataclasses.replace(SPACE, budget=Budget(10)))) == 3


def test_low_rates_are_proposed_for_trained_heads_only():
    """At 1e-5 a new head learns nothing in a few epochs: Keras' guide trains it alone before."""
    low = [values for values in load_portfolio() if values["lr"] <= 1e-4]
    assert low and all(values["head_init"] == "probe" for values in low)


def test_shipped_portfolio_applies_to_the_shipped_space():
    space = load_space("resnet18")
    assert first_proposals(space, space.models, load_portfolio(), without=space.base)


def test_small_search_without_models_begins_with_its_baseline(tmp_path):
    space = make_space()
    record = Record.create(tmp_path / "search", make_manifest(Design("search", (space.base,), space, 1)))
    assert [plan.recipe for plan in plan_first_trials(record)] == [space.base]
    record.close()
