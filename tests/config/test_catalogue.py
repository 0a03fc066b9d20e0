"""A recipe knows every model by name, with the sizes that it accepts."""

import re

import pytest

from study.config.catalogue import catalogue
from study.config.load_toml import baseline_recipe
from study.errors import ConfigError


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("resnet18", 224),
        ("efficientnet_b3", 224),
        ("vit_h_14", 518),
        ("timm/resnet10t.c3_in1k", 176),
        ("timm/vit_small_patch14_dinov2", 518),
    ],
)
def test_baseline_recipe_takes_the_size_of_timms_models(model, size):
    """The assignment's 224 pixels for torchvision's models, where they allow it."""
    assert baseline_recipe(model).image_size == size


def test_recipe_auto_is_the_models_own_size(make_recipe):
    assert make_recipe(model="efficientnet_b3", image_size="auto").image_size == 300
    assert make_recipe(model="timm/resnet10t.c3_in1k", image_size="auto").image_size == 176


@pytest.mark.parametrize(
    ("model", "size", "sizes"),
    [
        ("timm/eva02_tiny_patch14_224", 64, "224"),
        ("timm/vit_small_patch14_dinov2", 64, "at least 42 and a multiple of 14"),
        ("inception_v3", 64, "at least 96"),
    ],
)
def test_recipe_refuses_a_size_that_the_model_lacks(make_recipe, model, size, sizes):
    with pytest.raises(ConfigError, match=rf"^image_size: must be {sizes} for {model}, but got {size}\. Or give auto"):
        make_recipe(model=model, image_size=size)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("timm/resnet10tt", "timm/resnet10t"), ("resnet10t", "timm/resnet10t"), ("vitb16", "vit_b_16")],
)
def test_recipe_suggests_the_name_that_was_meant(make_recipe, name, meant):
    with pytest.raises(ConfigError, match=rf"^model: unknown model '{name}'\. Did you mean '{meant}'\?"):
        make_recipe(model=name)


def test_recipe_says_why_a_network_cannot_be_cut(make_recipe):
    problem = re.escape(catalogue()["timm/hrnet_w18"].problem)
    with pytest.raises(ConfigError, match=f"^model: must be a network that can be .* timm/hrnet_w18 {problem}"):
        make_recipe(model="timm/hrnet_w18")
