"""A kept classifier is trained again from its card alone, and what comes of it is judged by a stated tolerance."""

import json
from types import SimpleNamespace

import pytest
import torch
from support.saved_models import make_card

from study.compute.hardware import Hardware
from study.config.plan import Plan
from study.data.images import fingerprint
from study.data.sources import load_dataset
from study.errors import ConfigError, RecordError
from study.models.saved_model import CARD_FILE, MODEL_DIRECTORY, ModelCard
from study.results.metrics import Evaluation
from study.training.run_trial import Inputs, run_trial
from study.tuning.reproduce import Reproduction, describe, reproduce

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def study(image_folder, tmp_path):
    """A study's directory that holds nothing but the card of a model, and what that model's test came to."""
    source = {"fraction": 0.75, "seed": 3, "image_size": 32, "data_dir": tmp_path}
    dataset = load_dataset(str(image_folder), **source)
    recipe = {"model": "resnet18", "unfreeze_depth": 5, "epochs": 2, "batch_size": 6}
    inputs = Inputs(dataset.train, None, dataset.test, 2, {"resnet18": None}, "fp32")
    *_, test = run_trial(Plan(4, "final", make_card(**recipe).recipe, seed=11), inputs)
    card = make_card(
        **recipe, seed=11, classes=["cat", "dog"], confusion=test.confusion,
        data="pets", source=str(image_folder), fraction=0.75, data_seed=3, data_dir=str(tmp_path),
        stored_size=[32, 32], data_fingerprint=fingerprint(dataset.train, dataset.test),
        threads=1, arithmetic=Hardware(torch.device("cpu"), "fp32").arithmetic,
    )  # fmt: skip
    return SimpleNamespace(directory=keep(tmp_path / "one", card), test=test)


def keep(directory, card):
    (directory / MODEL_DIRECTORY).mkdir(parents=True, exist_ok=True)
    (directory / MODEL_DIRECTORY / CARD_FILE).write_text(json.dumps(card.to_dict()))
    return directory


def changed(study, **changes):
    values = json.loads((study.directory / MODEL_DIRECTORY / CARD_FILE).read_text())
    return keep(study.directory, ModelCard(**{**values, **changes}))


def nobody(epoch):
    """Watches no epoch."""


def test_reproduce_trains_the_same_classifier_from_the_card_alone(study):
    epochs = []
    result = reproduce(study.directory, epochs.append)
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert result.same_arithmetic
    assert result.test == study.test  # to the last bit of its loss
    assert result.agrees


def test_reproduce_reports_another_confusion(study):
    result = reproduce(changed(study, confusion=[[0, 3], [3, 0]]), nobody)
    assert result.moved > 0
    assert not result.agrees
    assert describe(result)[-1] == "verdict  not reproduced"


def test_reproduce_uses_the_recorded_number_of_threads(study):
    torch.set_num_threads(2)
    assert reproduce(study.directory, nobody).same_arithmetic  # which names the threads, 1 here
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_seed": 4}, r"model\.json: data_fingerprint must stay"),
        ({"fraction": 1.0}, r"model\.json: data_fingerprint must stay"),
        ({"weights_digest": "f" * 16}, r"model\.json: weights_digest must stay f+, but got none"),
    ],
)
def test_reproduce_refuses_other_images_and_weights(study, changes, message):
    with pytest.raises(RecordError, match=message):
        reproduce(changed(study, **changes), nobody)


def test_reproduce_finds_moved_images_at_their_new_place(study, image_folder, tmp_path):
    moved = image_folder.rename(tmp_path / "pets elsewhere")
    with pytest.raises(ConfigError, match=r"must hold the study's images, but is missing\. If moved, add --data"):
        reproduce(study.directory, nobody)
    assert reproduce(study.directory, nobody, places={"source": str(moved)}).test == study.test


def test_reproduce_names_the_missing_model_card(tmp_path):
    with pytest.raises(ConfigError, match=r"must keep a model, but keeps none\. Searches and baselines keep theirs"):
        reproduce(tmp_path, nobody)


def evaluation(confusion):
    return Evaluation(loss=1.0, confusion=confusion, predictions=[])


def compared(now, *, same_arithmetic):
    card = make_card(classes=["cat", "dog"], confusion=[[70, 30], [20, 80]])
    return Reproduction(card, evaluation(now), same_arithmetic)


def test_the_same_arithmetic_allows_no_difference():
    assert compared([[70, 30], [20, 80]], same_arithmetic=True).agrees
    assert not compared([[71, 29], [20, 80]], same_arithmetic=True).agrees


@pytest.mark.parametrize(
    ("now", "agrees"),
    [
        ([[70, 30], [20, 80]], True),
        ([[66, 34], [21, 79]], True),
        ([[50, 50], [30, 70]], False),  # the accuracy is too low
        ([[97, 3], [47, 53]], False),  # the accuracy is the same, but not on the same classes
    ],
)
def test_another_arithmetic_allows_what_the_test_images_cannot_tell_apart(now, agrees):
    assert compared(now, same_arithmetic=False).agrees is agrees


def test_moved_counts_each_image_once():
    assert compared([[68, 32], [25, 75]], same_arithmetic=False).moved == 7


def test_describe_states_both_accuracies_and_the_tolerance():
    lines = describe(compared([[66, 34], [21, 79]], same_arithmetic=False))
    assert lines[0] == "then     75.00% of 200 test images"
    assert lines[1] == "now      72.50%; confusion matrix: at least 5 images differ"
    assert "the 95 % intervals of both accuracies must overlap" in lines[2]
    assert lines[3] == "verdict  reproduced"
