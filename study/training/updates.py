"""Turn a batch's loss into a step of the trained weights: optimizer, learning rates, clipping, average.

Knows no images and no epochs.
"""

import math
from collections.abc import Iterable, Mapping
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


class Average:
    """Exponential moving average of a module's parameters and buffers, BatchNorm's statistics among them.

    After step t, from 1, the decay is min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten, as
    in TensorFlow's `ExponentialMovingAverage` and timm's `ModelEmaV3`; torch's `AveragedModel` has no such start and
    waits for the device at each step. Whole numbers are not averaged but copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Begin with the module's present values; its tensors must stay the same objects."""
        self.steps = 0
        self._decay = decay
        self._live: dict[str, Tensor] = module.state_dict(keep_vars=True)
        self._kept = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's values after a step into the average."""
        self.steps += 1
        decay = min(self._decay, (1 + self.steps) / (10 + self.steps))
        pairs = [(self._kept[name], tensor.detach()) for name, tensor in self._live.items()]
        means = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([kept for kept, _ in means], [live for _, live in means], 1 - decay)
        for kept, live in pairs:
            if not kept.is_floating_point():
                kept.copy_(live)

    def exchange(self) -> None:
        """Exchange the module's values and the average; a second call exchanges them back. Nothing is copied."""
        for name, tensor in self._live.items():
            tensor.data, self._kept[name] = self._kept[name], tensor.data

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by the names of the module's tensors."""
        return self._kept

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from an average after `steps` steps."""
        self.steps = steps
        for name, kept in self._kept.items():
            kept.copy_(state[name])


@dataclass(frozen=True)
class Updates:
    """Steps of a trial's trained weights."""

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    """Learning-rate schedule, advanced by each step."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together; 0 for no limit."""
    average: Average | None = None
    """Average of the weights over the steps, if one is kept."""

    def step(self) -> None:
        """Take the step against the gradients that a batch's pass has set."""
        if self.clip_norm:  # Pascanu et al., arXiv:1211.5063; the norm stays on the device, so nothing waits for it
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average:
            self.average.update()


def build_updates(classifier: Classifier, recipe: Recipe, steps: int) -> Updates:
    """Build what a trial of `steps` steps updates the classifier's suffix with."""
    optimizer = build_optimizer(recipe, parameter_groups(classifier, recipe))
    average = Average(classifier.suffix, recipe.ema_decay) if recipe.ema_decay else None
    return Updates(optimizer, build_lr_schedule(recipe, optimizer, steps), recipe.clip_norm, average)
