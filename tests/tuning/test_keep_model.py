"""What a search keeps: its best recipe's first complete refit, as it was tested."""

from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
import torch
from support.manifests import make_manifest

from study.config.plan import Plan
from study.data.images import Dataset
from study.errors import ConfigError
from study.models.classifier import build
from study.models.pretrained import Pretrained
from study.models.saved_model import find_model, kept_models, load_model
from study.results.metrics import Evaluation
from study.results.record import Record
from study.training.run_trial import Inputs, open_checkpoint, run_trial
from study.tuning.keep_model import keep_model, keep_models, recipe_to_keep, unkept
from study.verdict.verdict import Verdict

pytestmark = pytest.mark.usefixtures("one_thread")

UNTRAINED = Pretrained(None, "none", "every layer is new")
FACTS = {"device": "CPU", "precision": "fp32", "threads": 2, "arithmetic": "a machine"}
TEST = Evaluation(loss=1.0, confusion=[[3, 0, 0], [1, 2, 0], [0, 0, 3]], predictions=[0, 1, 2, 0, 0, 2, 0, 1, 2])


@pytest.fixture
def study(tmp_path, make_images, make_recipe):
    """A record of two seeds' refits, of the baseline and of the winner each, and the images that they are of."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    dataset = Dataset("pets", ("cat", "dog", "eel"), make_images(24), make_images(9, seed=1), 0.5)
    record = Record.create(tmp_path / "one", make_manifest(classes=dataset.classes, fraction=0.5, seed=3))
    recipe = make_recipe(unfreeze_depth=5, batch_size=4, epochs=1)
    record.add(Plan(None, "final", planned, seed) for seed in (5, 6) for planned in (make_recipe(epochs=1), recipe))
    yield SimpleNamespace(record=record, recipe=recipe, dataset=dataset)
    record.close()


def keep(study):
    return keep_model(study.record, study.recipe, study.dataset, UNTRAINED)


def finish(study, *, trials, complete=True, test=TEST):
    """Let the next trials leave what trials leave, untrained."""
    for _ in range(trials):
        plan = study.record.next_trial()
        study.record.facts(plan, FACTS)
        if complete:
            classifier = build(plan.recipe.model, classes=3, unfreeze_depth=5, pretrained=None, seed=plan.seed)
            open_checkpoint(study.record.checkpoints, study.record.manifest.uid, plan).save(1, classifier)
            study.record.tested(plan, test)
            study.record.complete(plan)
        else:
            study.record.fail(plan, "out of memory")


def test_kept_classifier_predicts_as_its_test_recorded(study):
    finish(study, trials=1)
    plan, data, record = study.record.next_trial(), study.dataset, study.record
    record.facts(plan, FACTS)
    weights, uid = {"resnet18": None}, record.manifest.uid
    inputs = Inputs(data.train, None, data.test, 3, weights, "fp32", study=uid, checkpoints=record.checkpoints)
    *_, test = run_trial(plan, inputs)
    record.tested(plan, test)
    record.complete(plan)
    saved = load_model(keep(study))
    predictions = saved.probabilities(torch.from_numpy(data.test.pixels)).argmax(dim=1)
    assert len(set(test.predictions)) > 1
    assert predictions.tolist() == test.predictions
    assert saved.card.confusion == test.confusion


def test_the_card_says_how_it_was_trained_and_on_what(study):
    finish(study, trials=2)
    card = load_model(keep(study)).card
    assert (card.recipe, card.seed, card.data_seed) == (study.recipe, 5, 3)
    assert (card.classes, card.stored_size) == (["cat", "dog", "eel"], [32, 32])
    assert card.test_fingerprint == study.dataset.test.fingerprint
    assert (card.study, card.uid) == ("one", study.record.manifest.uid)
    assert (card.precision, card.arithmetic) == ("fp32", "a machine")


def test_a_refit_that_failed_is_passed_over(study):
    finish(study, trials=1)
    finish(study, trials=1, complete=False)
    finish(study, trials=2)
    assert load_model(keep(study)).card.trial == "final-3"


def test_a_refit_of_another_study_is_passed_over(study, make_recipe):
    """Its weights are not here; it still counts as a refit, so that a winner that is not better is not kept."""
    finish(study, trials=2)
    donor = study.record.finals()[1]
    study.record.add([Plan(None, "final", make_recipe(lr=0.5), donor.plan.seed)])
    plan = study.record.finals()[-1].plan
    study.record.adopt(plan, replace(donor, plan=plan), "another")
    told = {"winner": study.recipe, "baseline": plan.recipe}
    assert recipe_to_keep(study.record, verdict("no better"), **told) == plan.recipe
    assert keep_model(study.record, plan.recipe, study.dataset, UNTRAINED) is None


def test_nothing_is_kept_where_no_refit_was_completed(study):
    finish(study, trials=1)
    assert keep(study) is None


def test_nothing_is_kept_where_the_weights_are_on_another_machine(study):
    finish(study, trials=2)
    for file in study.record.checkpoints.iterdir():
        file.unlink()
    assert keep(study) is None


def test_what_was_kept_before_stays(study):
    finish(study, trials=2)
    directory = keep(study)
    for file in study.record.checkpoints.iterdir():
        file.unlink()  # as at the end of a study
    assert keep(study) == directory


def verdict(decision):
    """Return a verdict of which only the decision matters here."""
    return Verdict(decision, None, 1, {}, 0.9, None, [], 1, [], None, None)


@pytest.mark.parametrize(
    ("decision", "kept"), [("better", "winner"), ("no better", "baseline"), ("worse", "baseline"), (None, "baseline")]
)
def test_only_a_better_winner_is_kept(study, make_recipe, decision, kept):
    finish(study, trials=4)
    recipes = {"winner": study.recipe, "baseline": make_recipe(epochs=1)}
    assert recipe_to_keep(study.record, verdict(decision), **recipes) == recipes[kept]


def test_winner_is_kept_if_no_baseline_refit_is_complete(study, make_recipe):
    assert (
        recipe_to_keep(study.record, verdict(None), winner=study.recipe, baseline=make_recipe(lr=0.5)) == study.recipe
    )


@pytest.fixture
def baseline(study, make_recipe):
    """The study's record with two networks as a baseline; the second one did better in its test."""
    for model, test in (
        ("resnet18", TEST),
        ("mobilenet_v3_small", replace(TEST, confusion=[[3, 0, 0], [0, 3, 0], [0, 0, 3]])),
    ):
        study.record.add([Plan(None, "baseline", make_recipe(model=model, unfreeze_depth=5, epochs=1), 3)])
        finish(study, trials=1, test=test)
    return study


def keep_all(study):
    keep_models(study.record, study.dataset, {"resnet18": UNTRAINED, "mobilenet_v3_small": UNTRAINED})


def test_baseline_keeps_the_model_of_each_trial(baseline):
    keep_all(baseline)
    cards = [load_model(directory).card for directory in kept_models(baseline.record.directory)]
    assert [(card.recipe.model, card.trial) for card in cards] == [("resnet18", "0"), ("mobilenet_v3_small", "1")]


def test_baseline_has_models_to_keep_until_they_are_kept(baseline):
    assert [trial.plan.key for trial in unkept(baseline.record)] == ["0", "1"]
    keep_all(baseline)
    assert unkept(baseline.record) == []


def test_find_model_takes_the_best_or_the_named_one(baseline):
    keep_all(baseline)
    found = [find_model(baseline.record.directory, which).name for which in ("", "resnet18", "0", "1")]
    assert found == ["1", "0", "0", "1"]


def test_find_model_names_the_known_ones(baseline):
    keep_all(baseline)
    with pytest.raises(ConfigError, match=r"unknown model 'resnet81'. Did you mean 'resnet18'\?"):
        find_model(baseline.record.directory, "resnet81")
