"""List the models that `architectures.py` cuts, with their input sizes and parameters.

Builds shapes alone, on torch's meta device, so that listing all of them takes no memory and no weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights

from study.config.architectures import ARCHITECTURES, FLATTEN


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of one model with ImageNet's 1,000 classes."""

    name: str
    blocks: tuple[int, ...]
    """Number of parameters of each block, from the image to the head."""
    head: int
    """Number of parameters of the head."""
    input_size: int
    """Image side in pixels that the ImageNet weights were trained for."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole network."""
        return sum(self.blocks) + self.head


def list_models() -> list[ModelFacts]:
    """Return the sizes of all models, in the order of the table of architectures."""
    return [_describe(name) for name in ARCHITECTURES]


def format_models(models: Iterable[ModelFacts]) -> str:
    """Format the models as a table, one line each; parameters in thousands."""
    lines = [
        f"{'thousands of parameters:':>37}",
        f"{'model':<20}{'input':>7}{'all':>10}{'in five blocks, from the image on':>45}{'head':>10}",
    ]
    for model in models:
        parts = "".join(f"{count / 1000:>9,.0f}" for count in model.blocks)
        counts = f"{model.parameters / 1000:>10,.0f}{parts}{model.head / 1000:>10,.0f}"
        lines.append(f"{model.name:<20}{model.input_size:>4} px{counts}")
    return "\n".join(lines)


def count_operations(model: str, *, image_size: int, unfreeze_depth: int, classes: int) -> tuple[int, int]:
    """Return the multiply-adds of one image's forward pass: in the frozen blocks, and in the trained part.

    Args:
        model: name in `architectures.py`.
        image_size: side in pixels.
        unfreeze_depth: number of trained blocks besides the head.
        classes: number of outputs.
    """
    with torch.device("meta"):
        network: nn.Module = get_model(model, num_classes=classes).eval()
        outputs = torch.empty(1, 3, image_size, image_size)
    architecture = ARCHITECTURES[model]
    frozen = len(architecture.blocks) - unfreeze_depth
    counts = []
    for paths in (architecture.blocks[:frozen], (*architecture.blocks[frozen:], architecture.head)):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            for path in (path for block in paths for path in block):
                outputs = outputs.flatten(1) if path == FLATTEN else network.get_submodule(path)(outputs)
        counts.append(counter.get_total_flops() // 2)
    return counts[0], counts[1]


def _describe(name: str) -> ModelFacts:
    with torch.device("meta"):
        network: nn.Module = get_model(name)
    architecture = ARCHITECTURES[name]
    blocks = tuple(_count(network, paths) for paths in architecture.blocks)
    input_size: int = get_model_weights(name)["DEFAULT"].transforms().crop_size[0]
    return ModelFacts(name, blocks, _count(network, architecture.head), input_size)


def _count(network: nn.Module, paths: Iterable[str]) -> int:
    modules = (network.get_submodule(path) for path in paths if path != FLATTEN)
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
