"""Build torchvision's and timm's networks by name, and say what each library knows about them.

Does not cut networks and loads no weights.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights
from torchvision.transforms import InterpolationMode

from study.config.catalogue import TIMM
from study.errors import WeightsError
from study.networks.architectures import ARCHITECTURES
from study.networks.cut import BEFORE, BLOCKS

OPTIONS: Mapping[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "vit_h_14": {"image_size": 518},
}
"""Arguments with which torchvision builds a network for its weights; the auxiliary classifiers are left out."""

AUXILIARY: Mapping[str, tuple[str, ...]] = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Beginnings of the names of tensors of auxiliary classifiers, which only training from nothing uses."""


def _inside(module: str, *names: int) -> tuple[str, ...]:
    return tuple(f"{module}.{name}" for name in names)


ENDS: Mapping[str, tuple[str, ...]] = {
    "alexnet": _inside("features", 2, 5, 7, 9),
    "densenet": ("features.pool0", "features.transition1", "features.transition2", "features.transition3"),
    "efficientnet": _inside("features", 1, 2, 3, 5),
    "googlenet": ("maxpool1", "maxpool2", "maxpool3", "maxpool4"),
    "inception": ("maxpool1", "maxpool2", "Mixed_5d", "Mixed_6e"),
    "convnext": _inside("features", 0, 1, 3, 5),
    "maxvit": ("stem", *_inside("blocks", 0, 1, 2)),
    "mnasnet": _inside("layers", 7, 8, 9, 11),
    "mobilenet_v2": _inside("features", 1, 3, 6, 13),
    "regnet": ("stem", "trunk_output.block1", "trunk_output.block2", "trunk_output.block3"),
    "shufflenet": ("conv1", "maxpool", "stage2", "stage3"),
    "squeezenet1_0": _inside("features", 2, 6, 9, 11),
    "squeezenet1_1": _inside("features", 2, 5, 8, 10),
    "swin": _inside("features", 0, 1, 3, 5),
    "vit": tuple(f"encoder.layers.encoder_layer_{block}" for block in range(32)),
}
"""Modules at which blocks end, by the beginning of torchvision's name; timm names its own."""


@dataclass(frozen=True)
class Preset:
    """How a model's weights want their images."""

    size: int
    """Side of the input in pixels."""
    resize: tuple[float, float]
    """Side to which the shorter side is resized, and side that the crop leaves of it, of which the ratio counts."""
    rounding: Any
    """How the resized side becomes whole: round in torchvision, math.floor in timm."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: InterpolationMode
    antialias: bool = True


def build_network(model: str, classes: int) -> nn.Module:
    """Build a network with new weights.

    Raises:
        WeightsError: the installed timm has no such model.
    """
    network: nn.Module
    if not model.startswith(TIMM):
        network = get_model(model, num_classes=classes, **OPTIONS.get(model, {}))
        return network
    import timm  # takes a second, which studies of torchvision's networks need not spend

    name = model.removeprefix(TIMM)
    if not timm.is_model(name.partition(".")[0]):
        raise WeightsError(f"{model}: must be a model of timm, but timm {timm.__version__} has none of that name.")
    network = timm.create_model(name, num_classes=classes)
    plain = type(network) is timm.models.vision_transformer.VisionTransformer
    if plain != getattr(network, "dynamic_img_size", plain):
        # A plain ViT adapts its position embeddings to an image's size before its blocks, so any size will do. In
        # other transformers the blocks themselves would need that size, which frozen blocks do not pass on.
        network = timm.create_model(name, num_classes=classes, dynamic_img_size=plain)
    return network


def build_on_meta(model: str, classes: int) -> nn.Module:
    """Build the network without memory for its tensors, for their names and shapes."""
    with torch.device("meta"), contextlib.suppress(NotImplementedError):
        return build_network(model, classes)
    return build_network(model, classes).to("meta")  # some networks compute with numbers while they are built


def timm_config(model: str) -> dict[str, Any]:
    """Return what timm says about a model's weights and images."""
    import timm

    config = timm.models.get_pretrained_cfg(model.removeprefix(TIMM))
    return dataclasses.asdict(config) if config else {}


@cache
def last_layers(model: str) -> tuple[str, ...]:
    """Return the layers that map features to logits: one, or several whose outputs are averaged."""
    if model in ARCHITECTURES:
        return (ARCHITECTURES[model].last_layer,)
    if model.startswith(TIMM):
        named = timm_config(model).get("classifier")
        return (named,) if isinstance(named, str) else tuple(named or ())
    layers = [name for name, module in build_on_meta(model, 2).named_modules() if isinstance(module, nn.Linear)]
    return (layers[-1],) if layers else ("classifier.1",)  # SqueezeNet's is a convolution


def thin_functions(model: str) -> tuple[Callable[..., Any], ...]:
    """Return the functions that `cut` must not trace into, since they ask for the size of an image."""
    if not model.startswith(TIMM):
        return ()
    from timm.layers.pos_embed import resample_abs_pos_embed

    return (resample_abs_pos_embed,)


def block_ends(model: str, network: nn.Module) -> list[str]:
    """Return the modules at which the blocks of a network may end, for `cut`."""
    if not model.startswith(TIMM):
        return list(next(ends for name, ends in ENDS.items() if model.startswith(name)))
    infos: Any = getattr(network, "feature_info", None) or []
    ends = [str(info["module"]) for info in infos]
    strides = [info["reduction"] for info in infos]
    if not ends:
        return _children(network, _largest_sequence(network))
    if len(ends) >= BLOCKS and strides == sorted(set(strides)):
        return ends[-BLOCKS:]  # one end at each resolution
    if len(ends) == BLOCKS - 1:
        return [BEFORE + ends[0], *ends[:-1]]  # the first block is the stem
    return ends if len(ends) > BLOCKS else [child for end in ends for child in _children(network, end)]


def _children(network: nn.Module, end: str) -> list[str]:
    """Return the blocks of a stage, if it is a sequence of blocks, else the stage itself."""
    try:
        stage = network.get_submodule(end)
    except AttributeError:
        return [end]
    for name, sequence in (("blocks", getattr(stage, "blocks", None)), ("", stage)):
        if isinstance(sequence, nn.Sequential | nn.ModuleList) and len(sequence) > 1:
            return [".".join(part for part in (end, name, child) if part) for child, _ in sequence.named_children()]
    return [end]


def _largest_sequence(network: nn.Module) -> str:
    """Return the name of the sequence of modules that has most parameters."""
    sequences = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in network.named_modules()
        if name and isinstance(module, nn.Sequential | nn.ModuleList)
    }
    return max(sequences, key=sequences.__getitem__, default="")


@cache
def preset(model: str) -> Preset:
    """Return how a model's weights want their images."""
    if model.startswith(TIMM):
        from timm.data.config import resolve_data_config

        found = resolve_data_config(pretrained_cfg=timm_config(model))
        known = {mode.value: mode for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)}
        return Preset(
            size=found["input_size"][-1],
            resize=(1.0, found["crop_pct"]),
            rounding=math.floor,
            mean=tuple(found["mean"]),
            std=tuple(found["std"]),
            interpolation=known.get(found["interpolation"], InterpolationMode.BICUBIC),
        )
    transforms = default_weights(model).transforms()
    return Preset(
        size=transforms.crop_size[0],
        resize=(transforms.resize_size[0], transforms.crop_size[0]),
        rounding=round,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation,
        antialias=transforms.antialias,
    )


def default_weights(model: str) -> WeightsEnum:
    """Return the weights that torchvision loads for 'DEFAULT'."""
    default: WeightsEnum = get_model_weights(model)["DEFAULT"]
    return default
