"""The assignment's solution as it was written: that it runs, and that its mistakes are really in it."""

import pytest
import torch
from PIL import Image
from torchvision.models import VGG16_Weights

from study.compute.hardware import Hardware
from study.training import reference

CPU = Hardware(torch.device("cpu"), "fp32")


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(image_size=224, epochs=1, batch_size=2)


@pytest.fixture
def network():
    return reference.build("resnet18", classes=3, pretrained=None, seed=0)


@pytest.mark.parametrize(("model", "count"), [("vgg16", 126_666_250), ("resnet18", 8_398_858)])
def test_build_trains_as_many_parameters_as_the_assignment(model, count):
    with torch.device("meta"):
        network = reference.build(model, classes=10, pretrained=None, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == count


def test_build_takes_pretrained_weights_and_a_new_last_layer(network):
    state = {name: torch.ones_like(tensor) for name, tensor in network.state_dict().items() if name[:3] != "fc."}
    built = reference.build("resnet18", classes=5, pretrained=state, seed=0).state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in state.items())
    assert built["fc.weight"].shape == (5, 512)


def test_train_moves_trained_parameters_and_leaves_frozen_ones(network, recipe, make_images):
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    list(reference.train(network, recipe, make_images(4), seed=0, hardware=CPU))
    after = dict(network.named_parameters())
    assert {name.split(".")[0] for name in before if not torch.equal(after[name], before[name])} == {"layer4", "fc"}


def test_train_yields_a_finite_loss_an_epoch_from_1(network, make_recipe, make_images):
    recipe = make_recipe(image_size=224, epochs=2, batch_size=4)
    epochs = list(reference.train(network, recipe, make_images(4), seed=0, hardware=CPU))
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert all(0 < epoch.loss < float("inf") for epoch in epochs)
    assert all(4 * epoch.accuracy in range(5) for epoch in epochs)


def test_train_tells_how_far_each_epoch_is(network, make_recipe, make_images):
    seen = []
    recipe = make_recipe(batch_size=4)
    list(
        reference.train(
            network, recipe, make_images(6), seed=0, hardware=CPU, watch=lambda epoch, done: seen.append((epoch, done))
        )
    )
    assert seen == [(1, 4), (1, 6), (2, 4), (2, 6)]


def test_train_same_seed_gives_same_losses(recipe, make_images):
    networks = [reference.build("resnet18", classes=3, pretrained=None, seed=0) for _ in range(2)]
    first, second = (list(reference.train(each, recipe, make_images(4), seed=5, hardware=CPU)) for each in networks)
    assert first == second


def test_train_lets_batch_norm_of_frozen_layers_drift(network, recipe, make_images):
    before = network.bn1.running_mean.clone()
    list(reference.train(network, recipe, make_images(4), seed=0, hardware=CPU))
    assert not network.bn1.weight.requires_grad
    assert not torch.equal(network.bn1.running_mean, before)


def test_evaluate_scores_each_image_and_repeats_with_its_seed(network, recipe, make_images):
    first, second = (reference.evaluate(network, recipe, make_images(5), seed=0, hardware=CPU) for _ in range(2))
    assert first.shape == (5, 3)
    assert torch.equal(first, second)


def test_evaluate_augments_test_images(network, recipe, make_images):
    """The same network sees other images under another seed."""
    images = make_images(5)
    first, second = (reference.evaluate(network, recipe, images, seed=seed, hardware=CPU) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_images_are_augmented_after_normalisation(recipe, make_images):
    """Geometry keeps the values below 0 that normalisation made; colour operations clamp them to 0."""
    dataset = reference._AsWritten(make_images(60), recipe.image_size)
    torch.manual_seed(0)
    lowest = torch.stack([dataset[index][0].min() for index in range(60)])
    assert (lowest < -0.5).any()
    assert (lowest == 0).any()


def test_images_of_either_model_get_the_transforms_of_vgg16(recipe, make_images):
    """Without a drawn operation or flip, what is left is VGG16's preset."""
    images = make_images(30)
    expected = [
        VGG16_Weights.DEFAULT.transforms()(Image.fromarray(pixels.transpose(1, 2, 0))) for pixels in images.pixels
    ]
    torch.manual_seed(0)
    dataset = reference._AsWritten(images, recipe.image_size)
    assert any(torch.equal(dataset[index][0], expected[index]) for index in range(30))
