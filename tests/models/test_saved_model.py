"""What a study keeps of its winner can be used again, is whole or absent, and runs nothing."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.saved_models import CLASSES, make_card, make_classifier, make_saved

from study.errors import RecordError, StudyError, WeightsError
from study.models.preprocessing import preprocessing
from study.models.saved_model import ModelCard, load_model, save_model


class Hostile:
    """Unpickling it makes a directory."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 32, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_saved_model_gives_the_networks_probabilities(tmp_path, images):
    card = make_card()
    classifier = make_classifier(card.recipe, CLASSES)
    save_model(tmp_path / "model", classifier, card)
    with torch.no_grad():
        expected = classifier.network(preprocessing("mobilenet_v3_small", 32)(images)).softmax(dim=1)
    assert torch.allclose(load_model(tmp_path / "model").probabilities(images), expected, atol=1e-6)


def test_saved_model_classifies_an_image_alike_in_any_batch(tmp_path, images):
    saved = make_saved(tmp_path / "model")
    one_by_one = torch.cat([saved.probabilities(image[None]) for image in images])
    assert torch.allclose(saved.probabilities(images), one_by_one, atol=1e-5)


def test_saved_weights_are_torchvisions_state_dict_in_fp32(tmp_path):
    saved = make_saved(tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert state.keys() == saved.predictor.network.state_dict().keys()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}  # BatchNorm counts its batches


def test_card_comes_back_as_it_was_saved(tmp_path):
    assert make_saved(tmp_path / "model").card == make_card()


def test_card_tells_the_test_accuracy_of_its_confusion():
    assert make_card().test_accuracy == 10 / 12


def test_save_model_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    make_saved(tmp_path / "model", seed=1)
    assert make_saved(tmp_path / "model", seed=2).card.seed == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert sorted(entry.name for entry in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]


def test_save_model_writes_both_files_or_none(tmp_path):
    card = make_card()
    classifier = make_classifier(card.recipe, CLASSES)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match=r"file.*must be writable and have room.*Free disk space, then use --resume"):
        save_model(tmp_path / "file" / "model", classifier, card)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_load_model_refuses_a_pickle_and_runs_nothing_of_it(tmp_path, file):
    make_saved(tmp_path / "model")
    marker = tmp_path / "ran"
    (tmp_path / "model" / file).write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(StudyError, match=file.replace(".", r"\.")):
        load_model(tmp_path / "model")
    assert not marker.exists()


@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_load_model_names_a_file_that_is_missing(tmp_path, file):
    make_saved(tmp_path / "model")
    (tmp_path / "model" / file).unlink()
    with pytest.raises(StudyError, match=file.replace(".", r"\.")):
        load_model(tmp_path / "model")


def test_load_model_refuses_weights_of_another_model(tmp_path):
    make_saved(tmp_path / "model")
    text = json.dumps(make_card(model="resnet18").to_dict())
    (tmp_path / "model" / "model.json").write_text(text)
    with pytest.raises(WeightsError, match=r"must hold weights of resnet18.*mobilenet_v3_small"):
        load_model(tmp_path / "model")


def test_load_model_refuses_weights_of_other_classes(tmp_path):
    make_saved(tmp_path / "model")
    card = make_card(classes=["cat", "dog"], confusion=[[1, 0], [0, 1]])
    (tmp_path / "model" / "model.json").write_text(json.dumps(card.to_dict()))
    with pytest.raises(RecordError, match=r"must have 2 outputs, as model\.json says, but .* the file has 3"):
        load_model(tmp_path / "model")


def test_load_model_refuses_weights_without_a_last_layer(tmp_path):
    make_saved(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "classifier.3" not in name}, file)
    with pytest.raises(RecordError, match="must have 3 outputs"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "7"}, "seed: must be a whole number, but got '7'"),
        ({"classes": ["cat"], "confusion": [[1]]}, "classes: must hold 2 or more"),
        ({"classes": ["cat", "cat", "eel"]}, "classes: must differ from each other"),
        ({"classes": ["cat", "dog", 3]}, "classes.2: must be a string, but got 3"),
        ({"confusion": [[1, 2], [3, 4]]}, "confusion: must count images of 3 classes"),
        ({"confusion": [[0] * 3] * 3}, "confusion: must count images of 3 classes"),
        ({"confusion": [[-1, 2, 0], [0, 1, 0], [0, 0, 1]]}, "confusion.0.0: must be at least 0, but got -1"),
        ({"stored_size": [32]}, "stored_size: must hold 2 or more"),
        ({"stored_size": [32, 0]}, "stored_size.1: must be at least 1"),
        ({"fraction": float("nan")}, "fraction: must be a finite number"),
        ({"precision": "fp8"}, "precision: unknown precision 'fp8'"),
        ({"threads": 0}, "threads: must be at least 1"),
        ({"versions": {"torch": 2}}, "versions.torch: must be a string"),
        ({"recipe": []}, "recipe: must be a table"),
        ({"recipe": {"model": "resnet18"}}, "recipe.unfreeze_depth: must be given"),
        ({"sed": 7}, "sed: unknown key 'sed'. Did you mean 'seed'?"),
    ],
)
def test_card_names_the_field_that_breaks_its_rule(tmp_path, changes, message):
    file = tmp_path / "model.json"
    file.write_text(json.dumps({**make_card().to_dict(), **changes}))
    with pytest.raises(RecordError, match=f"model.json: {message}".replace("?", r"\?")):
        ModelCard.read(file)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"seed": 1}', "\udcff"])
def test_card_refuses_what_is_none(tmp_path, text):
    file = tmp_path / "model.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RecordError, match=r"model\.json: "):
        ModelCard.read(file)
