"""Count what a recipe computes: the multiply-adds of a network's frozen and trained parts."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from study.networks.cut import BLOCKS
from study.networks.libraries import build_on_meta
from study.networks.parts import parts_of


def count_operations(model: str, *, image_size: int, unfreeze_depth: int, classes: int) -> tuple[int, int]:
    """Return the multiply-adds of one image's forward pass: in the frozen blocks, and in the trained part.

    Args:
        model: name in the catalogue.
        image_size: side in pixels.
        unfreeze_depth: number of trained blocks besides the head.
        classes: number of outputs.
    """
    network = build_on_meta(model, classes).requires_grad_(False).eval()
    outputs = torch.empty(1, 3, image_size, image_size, device="meta")
    parts = parts_of(model, network)
    frozen = BLOCKS - unfreeze_depth
    counts = []
    for part in (parts[:frozen], parts[frozen:]):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            outputs = nn.Sequential(*part).eval()(outputs)
        counts.append(counter.get_total_flops() // 2)
    return counts[0], counts[1]
