"""Define the recipe: the full set of hyperparameters of a trial, a value that checks itself.

Needs no torch, Ray, Optuna or MLflow, so that a mistake is reported before anything slow starts.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from study.config.architectures import ARCHITECTURES
from study.config.validation import check, check_choice
from study.errors import ConfigError, unknown_name

OPTIMIZERS = ("adam", "adamw", "sgd")

LR_SCHEDULES = ("constant", "cosine", "one-cycle")

AUGMENTATIONS = ("autoaugment", "none")

DEPTHS = range(6)
"""Unfreeze depths: from the head alone (0) to the head and all five blocks (5)."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one trial. Fields have no defaults here: `baseline.toml` holds the default values."""

    model: str
    """Name of a torchvision classifier: a key of ARCHITECTURES."""
    unfreeze_depth: int
    """Number of blocks trained besides the head, counted from the head, 0 to 5."""
    optimizer: str
    """Optimizer: adam, adamw or sgd (with momentum)."""
    lr: float
    """Peak learning rate, above 0."""
    momentum: float
    """Momentum of sgd, in [0, 1); adam and adamw ignore it."""
    weight_decay: float
    """Weight decay, at least 0."""
    lr_schedule: str
    """Learning rate schedule over all steps of all epochs: constant, cosine or one-cycle."""
    batch_size: int
    """Images per step, at least 1."""
    epochs: int
    """Number of training epochs, at least 1."""
    label_smoothing: float
    """Label smoothing, in [0, 1)."""
    augmentation: str
    """Augmentation of the training images: autoaugment (CIFAR-10 policy, with a horizontal flip) or none."""
    image_size: int
    """Side of the network's square input image, in pixels, at least 32."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: a field has the wrong type or breaks its rule.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and type(value) is int:
                if abs(value) > sys.float_info.max:
                    raise ConfigError(f"{field.name}: must be at most {sys.float_info.max:.2g}, but got more.")
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not field.type:
                wanted = field.type.__name__ if isinstance(field.type, type) else field.type
                raise ConfigError(f"{field.name}: must be of type {wanted}, but got {value!r}.")
        if self.model not in ARCHITECTURES:
            raise ConfigError(unknown_name("model", self.model, ARCHITECTURES))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check(self.unfreeze_depth in DEPTHS, "unfreeze_depth", "must be 0 to 5", self.unfreeze_depth)
        check(math.isfinite(self.lr) and self.lr > 0, "lr", "must be above 0", self.lr)
        check(0 <= self.momentum < 1, "momentum", "must be in [0, 1)", self.momentum)
        check(0 <= self.weight_decay < math.inf, "weight_decay", "must be at least 0", self.weight_decay)
        check(self.batch_size >= 1, "batch_size", "must be at least 1", self.batch_size)
        check(self.epochs >= 1, "epochs", "must be at least 1", self.epochs)
        check(0 <= self.label_smoothing < 1, "label_smoothing", "must be in [0, 1)", self.label_smoothing)
        check(self.image_size >= 32, "image_size", "must be at least 32", self.image_size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a recipe from plain values, as read from TOML or JSON.

        Raises:
            ConfigError: a key is missing or unknown, or a value breaks its rule.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(unknown_name("key", key, known))
        if missing := [key for key in known if key not in values]:
            raise ConfigError(f"{', '.join(missing)}: must be given, but is missing.")
        return cls(**values)

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields as plain values, in the order of their definition."""
        return dataclasses.asdict(self)
