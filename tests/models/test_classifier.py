"""A classifier cut at any depth computes, trains and begins as it should."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.weights import (
    SMALL,
    SMALL_LAST,
    CountCopies,
    backbone,
    changed,
    copy_of,
    new_state,
    shapes,
    train_one_step,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import get_model

from study.config.recipe import DEPTHS
from study.models.classifier import Classifier, build
from study.models.state_dict import StateDict, digest_state
from study.networks.architectures import ARCHITECTURES
from study.networks.libraries import build_network, last_layers
from study.seeding import derive_seed

ONE_OF_EACH = ("vgg11_bn", "resnet18", "resnext50_32x4d", "efficientnet_b0", "convnext_tiny", "mobilenet_v3_small")
"""A small one of each family, and of both kinds of block that a ResNet has."""


# The cut


class Trace(TorchDispatchMode):
    """Writes down each operation with the parameters and buffers it reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
        self.calls: list[tuple[str, list[str | None]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), [self.names.get(id(argument)) for argument in args]))
        return func(*args, **(kwargs or {}))


def trace(
    network: nn.Module, forward: Callable[[Tensor], Tensor]
) -> tuple[list[tuple[str, list[str | None]]], torch.Size]:
    with torch.inference_mode(), Trace(network) as mode:
        logits = forward(torch.empty(2, 3, 64, 64, device="meta"))
    return mode.calls, logits.shape


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_build_cuts_every_model_at_every_depth(model: str) -> None:
    """Both parts in a row are torchvision's forward: its operations, in its order, on the same tensors.

    Frozen are the blocks before the last ones, as many as the depth leaves, and nothing of the head.
    """
    pretrained = shapes(model)
    with torch.device("meta"):
        reference = get_model(model, num_classes=7).eval()
    expected = trace(reference, reference)
    for depth in DEPTHS:
        classifier = build(model, classes=7, unfreeze_depth=depth, pretrained=pretrained, seed=0)
        blocks = tuple(f"{path}." for block in ARCHITECTURES[model].blocks[: 5 - depth] for path in block)
        for name, parameter in classifier.network.named_parameters():
            assert parameter.requires_grad != name.startswith(blocks), (depth, name)
        network = classifier.network.to("meta")
        assert trace(network, nn.Sequential(classifier.prefix, classifier.suffix)) == expected, depth
    assert expected[1] == (2, 7)


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_build_cuts_every_backbone_into_five_blocks(model: str) -> None:
    """The last four end at 1/4, 1/8, 1/16 and 1/32 of the image's side."""
    classifier = build(model, classes=7, unfreeze_depth=0, pretrained=shapes(model), seed=0)
    features, sides = torch.empty(1, 3, 64, 64, device="meta"), []
    for block in classifier.prefix[:5]:
        features = block(features)
        sides.append(features.shape[-1])
    assert sides[1:] == [16, 8, 4, 2]


@pytest.mark.parametrize("depth", range(6))
def test_build_computes_what_torchvision_computes_at_every_depth(
    depth: int, resnet18: StateDict, images: Tensor
) -> None:
    classifier = build("resnet18", classes=10, unfreeze_depth=depth, pretrained=backbone("resnet18", resnet18), seed=0)
    reference = get_model("resnet18", num_classes=10).eval().to(memory_format=torch.channels_last)
    reference.load_state_dict(classifier.network.state_dict())
    with torch.inference_mode():
        assert torch.equal(classifier.suffix(classifier.prefix(images)), reference(images))


@pytest.mark.parametrize(("model", "expected"), [("vgg16", 126_666_250), ("resnet18", 8_398_858)])
def test_trainable_parameters_are_the_assignments_at_depth_1(model: str, expected: int) -> None:
    assert (
        build(model, classes=10, unfreeze_depth=1, pretrained=shapes(model), seed=0).trainable_parameters() == expected
    )


def test_depth_0_of_resnet18_trains_the_last_layer_alone() -> None:
    classifier = build("resnet18", classes=10, unfreeze_depth=0, pretrained=shapes("resnet18"), seed=0)
    assert classifier.trainable_parameters() == 512 * 10 + 10


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_prefix_ends_at_the_heads_first_weights_at_depth_0(model: str) -> None:
    """Pooling is frozen work too; whatever is random in training is not, and stays behind it."""
    classifier = build(model, classes=7, unfreeze_depth=0, pretrained=shapes(model), seed=0)
    assert [*classifier.suffix[0].parameters()]
    assert not any(isinstance(module, nn.Dropout) for module in classifier.prefix[5:].modules())


def test_prefix_is_empty_at_depth_5(images: Tensor) -> None:
    classifier = build(SMALL, classes=10, unfreeze_depth=5, pretrained=shapes(SMALL), seed=0)
    assert len(classifier.prefix) == 0
    assert classifier.prefix(images) is images


def test_prefix_digest_names_the_frozen_weights_alone(small: StateDict) -> None:
    """Whatever their memory format, the trained weights and the number of classes."""
    pretrained = backbone(SMALL, small)
    digest = build(SMALL, classes=10, unfreeze_depth=2, pretrained=pretrained, seed=0).prefix_digest
    other = build(SMALL, classes=3, unfreeze_depth=2, pretrained=pretrained, seed=1)
    other.network.to(memory_format=torch.channels_last)
    assert other.prefix_digest == digest
    changed_weights = {name: tensor + 1 for name, tensor in pretrained.items()}
    assert build(SMALL, classes=10, unfreeze_depth=2, pretrained=changed_weights, seed=0).prefix_digest != digest


@pytest.mark.parametrize("model", [SMALL, "timm/test_vit"])
def test_digest_at_any_depth_is_that_of_the_prefix(model: str) -> None:
    """Before training and after it, in any order of the depths: files of earlier studies have these names."""
    pretrained = build(model, classes=3, unfreeze_depth=0, pretrained=None, seed=0).network.state_dict()
    for depth in (3, 0, 5, 1):
        classifier = build(model, classes=3, unfreeze_depth=depth, pretrained=pretrained, seed=0)
        expected = digest_state(classifier.prefix.state_dict())
        with torch.no_grad():
            for tensor in classifier.suffix.state_dict().values():
                tensor.zero_()
        assert classifier.prefix_digest == expected


# Training


@pytest.mark.slow
@pytest.mark.parametrize("model", ONE_OF_EACH)
def test_training_changes_the_suffix_alone_at_every_depth(model: str, images: Tensor) -> None:
    """Frozen parameters, and the statistics of frozen BatchNorm, are the same after a step; all others are not."""
    pretrained = backbone(model, new_state(model))
    for depth in DEPTHS:
        classifier = build(model, classes=10, unfreeze_depth=depth, pretrained=pretrained, seed=0)
        prefix, suffix = copy_of(classifier.prefix.state_dict()), copy_of(classifier.suffix.state_dict())
        train_one_step(classifier, images)
        assert changed(prefix, classifier.prefix.state_dict()) == set(), depth
        assert changed(suffix, classifier.suffix.state_dict()) == suffix.keys(), depth


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("depth", [0, 5])
def test_training_never_writes_to_the_pretrained_tensors(depth: int, small: StateDict, images: Tensor) -> None:
    """They may lie in read-only memory that other processes share."""
    arrays = {name: tensor.numpy().copy() for name, tensor in backbone(SMALL, small).items()}
    for array in arrays.values():
        array.flags.writeable = False
    pretrained = {name: torch.from_numpy(array) for name, array in arrays.items()}
    train_one_step(build(SMALL, classes=10, unfreeze_depth=depth, pretrained=pretrained, seed=0), images)
    assert changed(pretrained, small) == set()


def build_first(pretrained: StateDict, ahead: bool, share: float, monkeypatch: pytest.MonkeyPatch) -> Classifier:
    """Build the first of two classifiers, which may build the second ahead in this share of the free memory."""
    monkeypatch.setattr("study.models.untrained.AHEAD_SHARE", share)
    one = build(SMALL, classes=10, unfreeze_depth=2, pretrained=pretrained, seed=0)
    if ahead:
        one.build_ahead(0)
    return one


@pytest.mark.parametrize(("ahead", "share"), [(False, 0.1), (True, 0.0), (True, 0.1)])
def test_networks_of_the_same_weights_share_frozen_tensors_only(
    ahead: bool, share: float, small: StateDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = backbone(SMALL, small)
    one = build_first(pretrained, ahead, share, monkeypatch)
    two = build(SMALL, classes=10, unfreeze_depth=2, pretrained=pretrained, seed=0)
    addresses = {tensor.data_ptr() for tensor in one.network.state_dict().values()}
    shared = {tensor.data_ptr() in addresses for tensor in two.prefix.state_dict().values()}
    assert shared == {not (ahead and share)}  # what was copied ahead, for any depth, shares nothing
    assert not any(tensor.data_ptr() in addresses for tensor in two.suffix.state_dict().values())


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("model", ["resnet18", "timm/resnet18", "timm/test_vit"])
@pytest.mark.parametrize("depth", [0, 2, 5])
def test_built_networks_are_in_evaluation_mode(model: str, depth: int, ahead: bool) -> None:
    """All of them, also those that were built after one that is trained."""
    for seed in (0, 0, 1):
        classifier = build(model, classes=4, unfreeze_depth=depth, pretrained=None, seed=seed)
        parts = (classifier.network, classifier.prefix, classifier.suffix)
        assert not any(module.training for part in parts for module in part.modules())
        classifier.network.train()
        classifier.set_training()
        if ahead:
            classifier.build_ahead(seed)


@pytest.mark.parametrize(("ahead", "share", "copied"), [(False, 0.1, True), (True, 0.1, False), (True, 0.0, True)])
def test_values_are_copied_ahead_if_there_is_memory(
    ahead: bool, share: float, copied: bool, small: StateDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = backbone(SMALL, small)
    build_first(pretrained, ahead, share, monkeypatch)
    with CountCopies() as counter:
        build(SMALL, classes=10, unfreeze_depth=5, pretrained=pretrained, seed=0)
    assert (counter.copies > 0) == copied


@pytest.mark.parametrize(
    ("model", "drawn"),
    [(SMALL, {*SMALL_LAST}), ("timm/test_efficientnet", {"classifier.weight"})],  # timm's biases begin as zeros
)
def test_build_is_the_same_after_any_other(model: str, drawn: set[str]) -> None:
    """With a head or without, of another seed or depth, built ahead or not: nothing of the one before is left."""
    whole = build(model, classes=1000, unfreeze_depth=0, pretrained=None, seed=9).network.state_dict()
    [last] = last_layers(model)
    bare = {name: tensor for name, tensor in whole.items() if not name.startswith(f"{last}.")}
    kinds = [(whole, 0, 1), (bare, 0, 1), (bare, 1, 1), (bare, 1, 4), ({**bare}, 0, 1), (None, 0, 1), (None, 1, 1)]

    def weights(kind: int, *, ahead: bool = False) -> StateDict:
        given, seed, depth = kinds[kind]
        classifier = build(model, classes=1000, unfreeze_depth=depth, pretrained=given, seed=seed)
        if ahead:
            classifier.build_ahead(seed)
            if given:
                classifier.build_ahead(1)
        return dict(classifier.network.state_dict())

    expected = [copy_of(weights(kind)) for kind in range(len(kinds))]
    assert changed(expected[0], expected[1]) == drawn
    for at, kind in enumerate((0, 1, 0, 0, 2, 3, 3, 2, 5, 6, 5, 4, 4, 1, 4, 2, 0, 6)):
        assert changed(expected[kind], weights(kind, ahead=at % 2 == 0)) == set()


def test_set_training_keeps_the_prefix_in_evaluation_mode(small: StateDict) -> None:
    classifier = build(SMALL, classes=10, unfreeze_depth=2, pretrained=backbone(SMALL, small), seed=0)
    assert not any(module.training for module in classifier.prefix.modules())
    classifier.set_training()
    assert not any(module.training for module in classifier.prefix.modules())
    assert all(module.training for module in classifier.suffix.modules())
    classifier.set_evaluation()
    assert not any(module.training for module in classifier.suffix.modules())


def test_build_leaves_the_number_of_threads_alone(small: StateDict) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        build(SMALL, classes=10, unfreeze_depth=1, pretrained=backbone(SMALL, small), seed=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# Chance


@pytest.mark.parametrize("pretrained", [True, False])
def test_build_leaves_the_global_generator_alone(pretrained: bool, small: StateDict) -> None:
    before = torch.get_rng_state()
    build(SMALL, classes=10, unfreeze_depth=1, pretrained=backbone(SMALL, small) if pretrained else None, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", [SMALL, "timm/test_vit", "timm/test_convnext", "timm/test_byobnet"])
def test_build_draws_what_torch_would_with_the_seed(model: str) -> None:
    """From a generator of its own, so that another thread may train, with dropout, while this one builds."""
    built = build(model, classes=3, unfreeze_depth=0, pretrained=None, seed=4).network.state_dict()
    torch.manual_seed(derive_seed(4, "weights"))
    assert changed(dict(built), dict(build_network(model, 3).state_dict())) == set()


@pytest.mark.parametrize("pretrained", [True, False])
def test_build_depends_on_the_seed_alone(pretrained: bool, small: StateDict) -> None:
    """Not on the state of the global generator, nor on the depth."""

    def weights(depth: int, seed: int) -> StateDict:
        given = backbone(SMALL, small) if pretrained else None
        return dict(build(SMALL, classes=10, unfreeze_depth=depth, pretrained=given, seed=seed).network.state_dict())

    first = weights(depth=1, seed=0)
    torch.rand(1)
    assert changed(first, weights(depth=3, seed=0)) == set()
    assert set(SMALL_LAST) & changed(first, weights(depth=1, seed=1))


def test_build_keeps_a_given_last_layer(small: StateDict) -> None:
    classifier = build(SMALL, classes=1000, unfreeze_depth=1, pretrained=small, seed=0)
    assert changed(small, classifier.network.state_dict()) == set()


@pytest.mark.slow
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_build_initialises_any_models_head(model: str) -> None:
    """Its last layer to the same values whether or not the others are new too."""
    blocks = tuple(f"{path}." for paths in ARCHITECTURES[model].blocks for path in paths)
    whole = shapes(model)
    bare = {name: tensor for name, tensor in whole.items() if name.startswith(blocks)}
    one, other = (
        build(model, classes=3, unfreeze_depth=0, pretrained=given, seed=0).network for given in (bare, whole)
    )
    last = ARCHITECTURES[model].last_layer
    assert torch.equal(one.get_submodule(last).weight, other.get_submodule(last).weight)
    assert not any(tensor.is_meta for name, tensor in one.state_dict().items() if name not in bare)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("model", ["timm/test_vit", "timm/test_efficientnet", SMALL])
def test_build_begins_anew_after_training(model: str, ahead: bool) -> None:
    """Networks of one process are copies of one; nothing of a trial's training is left for the next."""
    given = {
        name: tensor.clone()
        for name, tensor in build(model, classes=3, unfreeze_depth=0, pretrained=None, seed=1)
        .network.state_dict()
        .items()
        if not name.startswith(("head.", "classifier."))
    }
    first = build(model, classes=3, unfreeze_depth=5, pretrained=given, seed=0)
    before = copy_of(first.network.state_dict())
    if ahead:
        first.build_ahead(0)
    with torch.no_grad():
        for tensor in first.network.state_dict().values():
            tensor.add_(1)
    second = build(model, classes=3, unfreeze_depth=2, pretrained=given, seed=0)
    assert changed(before, second.network.state_dict()) == set()
    assert any(parameter.requires_grad for parameter in first.network.parameters())
