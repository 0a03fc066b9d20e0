"""Define where 26 of torchvision's classifiers are cut into five blocks and a head.

These networks came before `cut.py`, which cuts all others; their blocks, which checkpoints and the feature store name,
stay as they are. Knows module names only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

FLATTEN = "flatten"
"""Entry of a head that stands for `torch.flatten(x, 1)`, which torchvision calls between two modules."""


@dataclass(frozen=True)
class Architecture:
    """Dotted paths of a network's modules, in the order of the forward pass."""

    blocks: tuple[tuple[str, ...], ...]
    """Modules of the five blocks, from the image to the head.

    The outputs of the last four blocks have 1/4, 1/8, 1/16 and 1/32 of the image's side.
    """
    head: tuple[str, ...]
    """Modules that follow the blocks, including the last layer."""
    last_layer: str
    """Linear layer with one output per class."""


def _cut(features: str, *bounds: int) -> tuple[tuple[str, ...], ...]:
    """Cut the module sequence named `features` at `bounds`: n + 1 bounds make n blocks."""
    return tuple(tuple(f"{features}.{index}" for index in range(start, end)) for start, end in pairwise(bounds))


def _vgg(*bounds: int) -> Architecture:
    return Architecture(_cut("features", *bounds), ("avgpool", FLATTEN, "classifier"), "classifier.6")


def _efficientnet() -> Architecture:
    return Architecture(_cut("features", 0, 2, 3, 4, 6, 9), ("avgpool", FLATTEN, "classifier"), "classifier.1")


def _convnext() -> Architecture:
    return Architecture(_cut("features", 0, 1, 2, 4, 6, 8), ("avgpool", "classifier"), "classifier.2")


def _mobilenet(*bounds: int) -> Architecture:
    return Architecture(_cut("features", *bounds), ("avgpool", FLATTEN, "classifier"), "classifier.3")


def _resnet() -> Architecture:
    stem = ("conv1", "bn1", "relu", "maxpool")
    stages = (("layer1",), ("layer2",), ("layer3",), ("layer4",))
    return Architecture((stem, *stages), ("avgpool", FLATTEN, "fc"), "fc")


ARCHITECTURES: Mapping[str, Architecture] = {
    "vgg11": _vgg(0, 3, 6, 11, 16, 21),
    "vgg11_bn": _vgg(0, 4, 8, 15, 22, 29),
    "vgg13": _vgg(0, 5, 10, 15, 20, 25),
    "vgg13_bn": _vgg(0, 7, 14, 21, 28, 35),
    "vgg16": _vgg(0, 5, 10, 17, 24, 31),
    "vgg16_bn": _vgg(0, 7, 14, 24, 34, 44),
    "vgg19": _vgg(0, 5, 10, 19, 28, 37),
    "vgg19_bn": _vgg(0, 7, 14, 27, 40, 53),
    "resnet18": _resnet(),
    "resnet34": _resnet(),
    "resnet50": _resnet(),
    "resnet101": _resnet(),
    "resnet152": _resnet(),
    "resnext50_32x4d": _resnet(),
    "resnext101_32x8d": _resnet(),
    "resnext101_64x4d": _resnet(),
    "wide_resnet50_2": _resnet(),
    "wide_resnet101_2": _resnet(),
    "efficientnet_b0": _efficientnet(),
    "efficientnet_b1": _efficientnet(),
    "efficientnet_b2": _efficientnet(),
    "efficientnet_b3": _efficientnet(),
    "convnext_tiny": _convnext(),
    "convnext_small": _convnext(),
    "mobilenet_v3_small": _mobilenet(0, 1, 2, 4, 9, 13),
    "mobilenet_v3_large": _mobilenet(0, 2, 4, 7, 13, 17),
}
"""Architecture of each model, by torchvision's model name."""
