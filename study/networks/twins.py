"""Rename the tensors of a network's file for the same network of the other library.

Equal shapes in an equal order do not make networks equal: timm's MobileNetV3 differs from torchvision's in a norm's
epsilon, its RegNet in the order of its layers, and both would load. So the networks that are known to compute the
same stand in a table, and tests compare the outputs of each pair.
"""

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from study.config.catalogue import TIMM
from study.networks.libraries import build_on_meta, last_layers

TWINS: Mapping[str, str] = {
    "convnext_small": "timm/convnext_small",
    "convnext_tiny": "timm/convnext_tiny",
    "efficientnet_b0": "timm/efficientnet_b0",
    "efficientnet_b1": "timm/efficientnet_b1",
    "efficientnet_b2": "timm/efficientnet_b2",
    "efficientnet_b3": "timm/efficientnet_b3",
    "efficientnet_b4": "timm/efficientnet_b4",
    "mobilenet_v2": "timm/mobilenetv2_100",
    "vit_b_16": "timm/vit_base_patch16_224",
    "vit_b_32": "timm/vit_base_patch32_224",
}
"""timm's network that computes what torchvision's does, where the names of their tensors differ."""


def twin_of(model: str) -> str | None:
    """Return the same network of the other library, if its tensors have other names."""
    if not model.startswith(TIMM):
        return TWINS.get(model)
    plain = model.partition(".")[0]
    return next((ours for ours, theirs in TWINS.items() if theirs == plain), None)


def rename_twin(model: str, twin: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors of `twin` the names and shapes that `model` has for them.

    Tensors of one shape correspond in the order in which the networks define them, and the last layers correspond.
    Shapes count as one if their first sides and their numbers of elements are equal: a linear layer may stand for a
    convolution. BatchNorm's counters, which are not used at a fixed momentum, are left out.

    Args:
        model: name of a network in the catalogue.
        twin: its `twin_of`.
        found: tensors under the names of `twin`, with all shapes as there; its head's may be missing.
    """
    theirs = defaultdict(list)
    for name, shape in _ordered(twin):
        theirs[shape].append(name)
    [last], [other] = last_layers(model), last_layers(twin)
    renamed = {f"{last}.{part}": found[f"{other}.{part}"] for part in ("weight", "bias") if f"{other}.{part}" in found}
    expected = build_on_meta(model, classes=1).state_dict()
    for name, shape in _ordered(model):
        source = theirs[shape].pop(0)
        if source in found:
            renamed[name] = found[source].reshape(expected[name].shape)
    assert not any(theirs.values())
    return renamed


def _ordered(model: str) -> list[tuple[str, tuple[int, int]]]:
    """Return a network's tensors in their order, each with its first side and its number of elements."""
    last = f"{last_layers(model)[0]}."
    return [
        (name, (tensor.shape[0], tensor.numel()))
        for name, tensor in build_on_meta(model, classes=1).state_dict().items()
        if tensor.ndim > 0 and not name.startswith(last)
    ]
