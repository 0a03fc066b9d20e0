"""Turn a batch's loss into a step of the trained weights: optimizer, learning rates and their schedule, clipping.

Knows no images and no epochs.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from study.config.recipe import Recipe
from study.models.classifier import Classifier

Schedule = torch.optim.lr_scheduler.LRScheduler


def parameter_groups(classifier: Classifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the trained parameters in groups with their peak learning rates, for an optimizer.

    The head learns at lr · head_lr_factor. The block before it learns at lr · layer_decay, and each earlier block at
    layer_decay times the rate of the block after it, as in BEiT (arXiv:2106.08254).
    """
    if recipe.head_lr_factor == recipe.layer_decay == 1:
        return [{"params": _trained(classifier.suffix.parameters()), "lr": recipe.lr}]
    head, *blocks = classifier.parameters_from_head()
    rates = [recipe.lr * recipe.layer_decay**at for at in range(1, len(blocks) + 1)]
    groups = zip([head, *blocks], [recipe.lr * recipe.head_lr_factor, *rates], strict=True)
    return [{"params": _trained(parameters), "lr": rate} for parameters, rate in groups]


def _trained(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def build_optimizer(recipe: Recipe, parameters: list[nn.Parameter] | list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build the recipe's optimizer. The fused version takes the same steps with fewer passes over memory."""
    match recipe.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        case "adamw":  # Loshchilov & Hutter, arXiv:1711.05101
            return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        case _:
            return torch.optim.SGD(
                parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
            )


def build_lr_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
    """Build the recipe's learning-rate schedule for a whole trial of `steps` optimizer steps.

    With warm-up, the rate rises linearly over the first steps, and the schedule takes the others. One-cycle has a rise
    of its own, from a 25th of the peak, whose length the warm-up sets.
    """
    rising = round(recipe.warmup * steps)
    match recipe.lr_schedule:
        case "one-cycle":  # arXiv:1708.07120, with torch's default proportions
            peaks = [group["lr"] for group in optimizer.param_groups]
            rise = min(rising, steps - 1) / steps if rising > 1 and steps > 2 else 0.0  # each phase needs two steps
            share = rise if recipe.warmup > 0 else 0.3
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=steps, pct_start=share)
        case schedule if recipe.warmup > 0:
            return torch.optim.lr_scheduler.LambdaLR(
                optimizer, partial(_warmed, rising=rising, steps=steps, decays=schedule == "cosine")
            )
        case "cosine":  # decays to zero without restarts: arXiv:1608.03983
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        case _:
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _warmed(step: int, *, rising: int, steps: int, decays: bool) -> float:
    """Return the learning rate of a step, from 0, as a share of its peak, after Goyal et al., arXiv:1706.02677."""
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising))) if decays else 1.0


@dataclass(frozen=True)
class Updates:
    """Steps of a trial's trained weights."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    """Learning-rate schedule, advanced by each step."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0 for no limit."""

    def step(self, loss: Tensor) -> None:
        """Take the step against the gradients of a batch's loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm:  # Pascanu et al., arXiv:1211.5063; the norm stays on the device, so nothing waits for it
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        self.schedule.step()


def build_updates(classifier: Classifier, recipe: Recipe, steps: int) -> Updates:
    """Build what a trial of `steps` steps updates the classifier's suffix with."""
    optimizer = build_optimizer(recipe, parameter_groups(classifier, recipe))
    return Updates(optimizer, build_lr_schedule(recipe, optimizer, steps), recipe.clip_norm)
