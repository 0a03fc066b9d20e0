"""Exported files compute what the kept model computes, and say how they are used."""

import json
import shutil
import sys

import numpy as np
import onnxruntime
import optuna
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.manifests import make_manifest, small_recipe
from support.saved_models import CLASSES, make_card, make_saved
from torchvision.models import get_model
from torchvision.transforms.v2 import InterpolationMode, functional

from study.export.__main__ import main
from study.export.card import write_card
from study.export.formats import FORMATS, compare, describe_input, frame, write_checked
from study.models.preprocessing import preprocessing
from study.results.record import Record

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return make_saved(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def stored():
    return np.random.default_rng(3).integers(0, 256, (5, 3, 32, 36), dtype=np.uint8)


def wanted(saved, stored):
    return saved.probabilities(torch.from_numpy(stored))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_file_gives_the_probabilities_in_onnxruntime(saved, stored, tmp_path):
    check = write_checked(tmp_path / "model.onnx", saved, stored)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": frame(saved.card, stored).numpy()})
    assert torch.allclose(torch.from_numpy(logits).softmax(dim=1), wanted(saved, stored), atol=1e-4)
    described = json.loads(session.get_modelmeta().custom_metadata_map["study"])
    assert (described["classes"], "(n, 3, 32, 32) uint8" in described["input"]) == (CLASSES, True)
    assert (check.images, check.changed) == (5, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_pt2_file_gives_the_probabilities_in_torch(saved, stored, tmp_path):
    write_checked(tmp_path / "model.pt2", saved, stored)
    files = {"study": ""}
    graph = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    for number in (1, 5):
        logits = graph(frame(saved.card, stored[:number]))
        assert torch.allclose(logits.softmax(dim=1), wanted(saved, stored[:number]), atol=1e-4)
    assert json.loads(files["study"])["classes"] == CLASSES


def test_safetensors_file_gives_the_probabilities_in_torchvision(saved, stored, tmp_path):
    """For images that are prepared as the file's description says."""
    write_checked(tmp_path / "model.safetensors", saved, stored)
    network = get_model("mobilenet_v3_small", weights=None, num_classes=3).eval()
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        described = json.loads(file.metadata()["study"])
    assert "(n, 3, 32, 32) float32 RGB in [0, 1], minus mean, divided by std" in described["input"]
    mean, deviation = (torch.tensor(described[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        logits = network((frame(saved.card, stored).float() / 255 - mean) / deviation)
    assert torch.allclose(logits.softmax(dim=1), wanted(saved, stored), atol=1e-4)


TIMM = {"timm/resnet10t.c3_in1k": 32, "timm/test_vit.r160_in1k": 32}
"""A network of convolutions and one of attention, at other sizes than their own."""


@pytest.fixture(params=TIMM)
def saved_timm(request, tmp_path):
    return make_saved(tmp_path / "model", model=request.param, image_size=TIMM[request.param])


def test_timm_loads_the_exported_directory(saved_timm, stored, study, capsys):
    shutil.rmtree(study / "models")
    shutil.copytree(saved_timm.directory, study / "models" / "0")
    assert main(["one", "out", "--to", "safetensors"]) == 0
    network = timm.create_model("local-dir:out", pretrained=True).eval()
    card = saved_timm.card
    inputs = preprocessing(card.recipe.model, card.recipe.image_size)(torch.from_numpy(stored))
    with torch.inference_mode():
        assert torch.allclose(network(inputs), saved_timm.predictor.network(inputs), atol=1e-5)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    assert network.pretrained_cfg["label_names"] == CLASSES
    assert transform(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_graph_of_timm_computes_what_the_model_does(saved_timm, stored, tmp_path, kind):
    check = write_checked(tmp_path / f"model.{kind}", saved_timm, stored)
    assert (check.agrees, check.changed) == (True, 0)


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("model", ["resnet18", "timm/efficientnet_b0"])
def test_description_says_how_images_come_to_size(model, fit):
    card = make_card(recipe=small_recipe(model=model, image_size=64, fit=fit))
    said = describe_input(card, "onnx")
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 73, 73), np.uint8)
    way = InterpolationMode(said["interpolation"])
    resized = functional.resize(torch.from_numpy(images), said["resize"], way, antialias=said["antialias"])
    given = functional.center_crop(resized, [said["centre_crop"]])
    assert (given.int() - frame(card, images).int()).abs().max() <= 1


def test_compare_finds_a_wrong_file(saved, stored):
    check = compare(lambda images: torch.zeros(len(images), 3), saved, stored)
    assert (check.agrees, check.difference) == (False, check.largest)


@pytest.fixture
def study(saved, tmp_path, monkeypatch):
    """A baseline whose images are gone, in the working directory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory = tmp_path / "mlruns" / "studies" / "one"
    record = Record.create(directory, make_manifest(classes=tuple(CLASSES)))
    record.note("audit", {"leaked_test": [0, 4], "contradictions": 0})
    record.close()
    shutil.copytree(saved.directory, directory / "models" / "0")
    monkeypatch.chdir(tmp_path)
    return directory


def test_export_says_what_it_checked(study, capsys):
    assert main(["one", "out", "--to", "safetensors"]) == 0
    out = capsys.readouterr().out
    assert "input    images (n, 3, 32, 32) float32 RGB in [0, 1], minus mean, divided by std" in out
    assert "checked  64 random images, since the test images are gone: a logit differs by at most " in out
    assert {path.name for path in (study.parents[2] / "out").iterdir()} == {
        "model.safetensors", "config.json", "README.md",
    }  # fmt: skip


def test_export_writes_a_card_with_result_leaks_and_limits(study):
    main(["one", "out", "--to", "safetensors"])
    head, body = (study.parents[2] / "out" / "README.md").read_text().split("---\n")[1:]
    front = dict(line.split(": ", 1) for line in head.splitlines())
    assert json.loads(front["pipeline_tag"]) == "image-classification"
    (result,) = json.loads(front["model-index"])[0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": round(10 / 12, 6)}]
    for text in ("83.33% of 12 images (95 % interval 55.20% to 95.30%", "No verdict", "2 test images have a copy",
                 "d" * 16, "## Limits", "random weights"):  # fmt: skip
        assert text in body


def card_of(study, **changes):
    return write_card(make_card(**changes), Record.read(study), "onnx", {"input": "images", "output": "logits"})


def metrics_of(card):
    (line,) = (line for line in card.splitlines() if line.startswith("model-index: "))
    return json.loads(line.removeprefix("model-index: "))[0]["results"][0]["metrics"]


@pytest.mark.parametrize(
    ("metric", "name", "value", "shown"),
    [
        ("balanced_accuracy", "balanced accuracy", 0.666667, "66.67%"),
        ("macro_f1", "macro F1", 0.62963, "62.96%"),
        ("log_loss", "log loss", 0.25, "0.2500"),
    ],
)
def test_card_has_the_metric_that_decided_the_study(study, metric, name, value, shown):
    card = card_of(study, metric=metric, test_loss=0.25, confusion=[[4, 0, 0], [0, 4, 0], [1, 0, 0]])
    accuracy = {"type": "accuracy", "value": 0.888889}
    assert metrics_of(card) == [accuracy, {"type": metric, "name": name, "value": value}]
    assert f"- Test {name}, the metric that decided the study: {shown}." in card


def test_card_leaves_out_a_log_loss_not_known(study):
    assert [metric["type"] for metric in metrics_of(card_of(study, metric="log_loss"))] == ["accuracy"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("weights", "weights of the user's own, in the file 'mobilenet_v3_small.pth';"),
        ("weights/mobilenet_v3_small.pth", "weights of the user's own, in the file 'mobilenet_v3_small.pth';"),
        ("gone/ours.safetensors", "weights of the user's own, in the file 'ours.safetensors';"),
        ("gone", "weights of the user's own;"),
    ],
)
def test_card_names_given_weights_without_their_place(study, tmp_path, given, named):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mobilenet_v3_small.pth").touch()
    card = card_of(study, weights=str(tmp_path / given))
    assert f"It began from {named}" in card
    assert str(tmp_path) not in card


def test_card_keeps_the_word_for_imagenet_weights(study):
    assert "It began from the weights 'imagenet';" in card_of(study, weights="imagenet")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["on", "out"], 2, "unknown study 'on'. Did you mean 'one'?"),
        (["one/vgg16", "out"], 2, "unknown model 'vgg16'"),
        (["one", "mlruns"], 2, "mlruns: must be a new directory, but exists"),
    ],
)
def test_export_refuses_in_one_line(study, capsys, arguments, code, message):
    assert main([*arguments, "--to", "pt2"]) == code
    assert message in capsys.readouterr().err


def test_export_names_a_missing_package(study, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["one", "out", "--to", "onnx"]) == 2
    error = capsys.readouterr().err
    assert "needs the package onnxscript, which is missing. Run: pip install onnx onnxscript onnxruntime" in error
    assert not (study.parents[2] / "out").exists()


def test_formats_are_those_of_the_flag():
    from study.export.__main__ import FORMATS as flags

    assert tuple(FORMATS) == flags
