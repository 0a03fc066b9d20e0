"""The list of models says what torchvision's own networks and weights say."""

import pytest
from torchvision.models import get_model_weights

from study.config.architectures import ARCHITECTURES
from study.models.list_models import count_operations, format_models, list_models


@pytest.fixture(scope="module")
def models():
    return {model.name: model for model in list_models()}


def test_every_model_is_listed_once(models):
    assert list(models) == list(ARCHITECTURES)
    assert len(list_models()) == len(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_and_head_are_all_of_a_models_parameters(models, name):
    assert models[name].parameters == get_model_weights(name)["DEFAULT"].meta["num_params"]
    assert len(models[name].blocks) == 5


@pytest.mark.parametrize(("name", "side"), [("vgg16", 224), ("efficientnet_b1", 240), ("efficientnet_b3", 300)])
def test_the_input_size_is_the_weights_own(models, name, side):
    assert models[name].input_size == side


def test_the_table_aligns_its_lines(models):
    heading, *lines = format_models(models.values()).splitlines()[1:]
    assert {len(line) for line in lines} == {len(heading)}
    assert lines[4].split() == ["vgg16", "224", "px", "138,358", "39", "221", "1,475", "5,900", "7,079", "123,643"]


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
