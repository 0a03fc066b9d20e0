"""Define the recipe: the full set of hyperparameters of a trial, a value that checks itself.

Needs no torch, Ray, Optuna or MLflow, so that a mistake is reported before anything slow starts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from study.config.architectures import ARCHITECTURES
from study.config.validation import checked, one_of
from study.errors import ConfigError, unknown_name

OPTIMIZERS = ("adam", "adamw", "sgd")

LR_SCHEDULES = ("constant", "cosine", "one-cycle")

AUGMENTATIONS = ("autoaugment", "none")

DEPTHS = range(6)
"""Unfreeze depths: from the head alone (0) to the head and all five blocks (5)."""


Number = Annotated[float, Field(allow_inf_nan=False)]
"""A finite number; whole numbers become floats."""


def _known_model(name: str) -> str:
    if name not in ARCHITECTURES:
        raise PydanticCustomError("name", "{text}", {"text": unknown_name("model", name, ARCHITECTURES)})
    return name


@checked()
class Recipe:
    """Hyperparameters of one trial. Fields have no defaults here: `baseline.toml` holds the default values.

    Raises:
        ConfigError: fields have the wrong type or break their rules.
    """

    model: Annotated[str, AfterValidator(_known_model)]
    """Name of a torchvision classifier: a key of ARCHITECTURES."""
    unfreeze_depth: Annotated[int, Field(ge=0, le=DEPTHS[-1])]
    """Number of blocks trained besides the head, counted from the head, 0 to 5."""
    optimizer: Annotated[str, one_of(*OPTIMIZERS)]
    """Optimizer: adam, adamw or sgd (with momentum)."""
    lr: Annotated[Number, Field(gt=0)]
    """Peak learning rate, above 0."""
    momentum: Annotated[Number, Field(ge=0, lt=1)]
    """Momentum of sgd, in [0, 1); adam and adamw ignore it."""
    weight_decay: Annotated[Number, Field(ge=0)]
    """Weight decay, at least 0."""
    lr_schedule: Annotated[str, one_of(*LR_SCHEDULES)]
    """Learning rate schedule over all steps of all epochs: constant, cosine or one-cycle."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images per step, at least 1."""
    epochs: Annotated[int, Field(ge=1)]
    """Number of training epochs, at least 1."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)]
    """Label smoothing, in [0, 1)."""
    augmentation: Annotated[str, one_of(*AUGMENTATIONS)]
    """Augmentation of the training images: autoaugment (CIFAR-10 policy, with a horizontal flip) or none."""
    image_size: Annotated[int, Field(ge=32)]
    """Side of the network's square input image, in pixels, at least 32."""

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
