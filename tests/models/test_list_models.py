"""The list of models is short, says what the libraries say, and knows which weights are here."""

import csv
from importlib import resources

import pytest
from support.models_csv import describe
from torchvision import models as torchvision_models
from torchvision.models import get_model_weights, list_models

from study.config.catalogue import catalogue, known_models
from study.errors import ConfigError
from study.models.list_models import find_models, format_families, format_models, local_weights
from study.networks.operations import count_operations


def test_catalogue_holds_every_classifier_of_torchvision():
    names = [name for name in known_models() if not name.startswith("timm/")]
    assert names == list_models(module=torchvision_models)


@pytest.mark.parametrize("name", ["vgg16", "swin_t", "efficientnet_b3", "vit_h_14"])
def test_catalogue_says_what_torchvision_says(name):
    weights, entry = get_model_weights(name)["DEFAULT"], catalogue()[name]
    assert entry.parameters == weights.meta["num_params"]
    assert (entry.size, entry.weights) == (weights.transforms().crop_size[0], weights.url.rpartition("/")[2])


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet10t", "timm/test_vit", "timm/eva02_tiny_patch14_224"])
def test_catalogue_says_what_is_measured(name):
    with resources.files("study.config").joinpath("models.csv").open(encoding="utf-8") as file:
        row = next(row for row in csv.DictReader(file) if row["name"] == name)
    measured = describe(name)
    keys = ("parameters", "operations", "size", "step", "smallest", "problem")
    assert {key: row[key] for key in keys} == {key: str(measured[key]) for key in keys}


def test_catalogue_counts_every_networks_operations():
    assert [name for name, entry in known_models().items() if entry.operations == 0] == []


def test_find_models_takes_a_wildcard_or_a_part():
    assert {"resnet18", "timm/resnet18", "timm/resnet18.a1_in1k"} <= {entry.name for entry in find_models("resnet18")}
    assert {entry.name.partition(".")[0] for entry in find_models("timm/resnet10t*")} == {"timm/resnet10t"}
    assert find_models("resnet10t*") == find_models("timm/resnet10t*")


def test_find_models_suggests_a_name():
    with pytest.raises(ConfigError, match=r"but 'vgg61' matches none\. Did you mean 'vgg16'\?"):
        find_models("vgg61")


def test_format_models_shows_at_most_its_limit():
    lines = format_models(find_models("resnet"), limit=3).splitlines()
    assert len(lines) == 5
    assert lines[-1].endswith("more. Give a narrower pattern.")


def test_format_families_fits_two_screens():
    lines = format_families().splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 120


def test_local_weights_are_found_in_both_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    models = [catalogue()[name] for name in ("resnet18", "vgg16", "timm/resnet10t", "timm/resnet10t.c3_in1k")]
    assert local_weights(models) == set()
    snapshot = tmp_path / "hf" / "hub" / "models--timm--resnet10t.c3_in1k" / "snapshots" / "abc"
    for file in (tmp_path / "torch" / "hub" / "checkpoints" / models[0].weights, snapshot / "model.safetensors"):
        file.parent.mkdir(parents=True)
        file.touch()
    assert local_weights(models) == {"resnet18", "timm/resnet10t", "timm/resnet10t.c3_in1k"}


@pytest.mark.parametrize(("model", "millions"), [("resnet18", 1814), ("vgg16", 15470)])
def test_count_operations_gives_torchvisions_own_figure(model, millions):
    """ImageNet's thousand classes, 224 px: 'GFLOPS' of the weights' own metadata, in multiply-adds."""
    counts = [count_operations(model, image_size=224, unfreeze_depth=depth, classes=1000) for depth in range(6)]
    assert {round(sum(count) / 1e6) for count in counts} == {millions}
    assert counts[5][0] == 0
    assert [frozen for frozen, _ in counts] == sorted((frozen for frozen, _ in counts), reverse=True)


def test_count_operations_counts_the_studys_own_head():
    ours, imagenets = (
        count_operations("resnet18", image_size=64, unfreeze_depth=1, classes=classes) for classes in (10, 1000)
    )
    assert ours[0] == imagenets[0]
    assert imagenets[1] - ours[1] == 990 * 512
