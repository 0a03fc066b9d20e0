"""Define the recipe: the full set of hyperparameters of a trial, a value that checks itself.

Needs no torch, Ray, Optuna or MLflow, so that a mistake is reported before anything slow starts.
"""

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, ValidatorFunctionWrapHandler, WrapValidator

from study.config.catalogue import catalogue, check_size, known_models, own_size
from study.config.validation import AtLeastOne, checked, one_of
from study.errors import ConfigError, nearest_name

OPTIMIZERS = ("adam", "adamw", "sgd")

LR_SCHEDULES = ("constant", "cosine", "one-cycle")

AUGMENTATIONS = ("autoaugment", "none", "flip", "trivialaugment", "randaugment", "random-resized-crop")

FITS = ("crop", "pad", "squash")
CLASS_WEIGHTS = ("none", "balanced")

HEAD_INITS = ("random", "probe")

DEPTHS = range(6)
"""Unfreeze depths: from the head alone (0) to the head and all five blocks (5)."""

AUTO = "auto"
"""Image size that stands for the model's own."""


def _check_model(name: str) -> str:
    entry = catalogue().get(name)
    if entry is None:
        raise ConfigError(unknown_model(name))
    if entry.problem:
        raise ConfigError(f"must be a network that can be fine-tuned here, but {name} {entry.problem}.")
    return name


def unknown_model(name: str) -> str:
    """Word the error for a name that no library has: with the nearest names, but not with all thousands."""
    known = known_models()
    listed = f"python -m study.run --models lists all {len(known):,}."
    if name not in known and f"timm/{name}" in known:
        return f"unknown model {name!r}. Did you mean 'timm/{name}'? {listed}"
    near = nearest_name(name, [known_name for known_name in known])
    hint = f" Did you mean {near!r}?" if near else ""
    return f"unknown model {name!r}.{hint} {listed}"


def _own_or_given(value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Replace auto by the model's own size; without a model, in a table of a file, keep it."""
    if value != AUTO:
        return check(value)
    model = (info.data or {}).get("model")
    return own_size(model) if model else value


Model = Annotated[str, AfterValidator(_check_model)]


@checked
class Recipe:
    """Hyperparameters of one trial; `baseline.toml` holds the default values.

    Only fields that records of version 0.1.0 lack have defaults here, with the meaning of that version.

    Raises:
        ConfigError: fields are missing, unknown or wrong; the message lists all of them.
    """

    model: Model
    """Name of a classifier in the catalogue: torchvision's own, or timm/NAME or timm/NAME.TAG."""
    unfreeze_depth: Annotated[int, Field(ge=0, le=DEPTHS[-1])]
    """Number of blocks trained besides the head, counted from the head, 0 to 5."""
    optimizer: Annotated[str, one_of("choice", OPTIMIZERS)]
    """Optimizer: adam, adamw or sgd (with momentum)."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate, above 0."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Momentum of sgd, in [0, 1); adam and adamw ignore it."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Weight decay, at least 0."""
    lr_schedule: Annotated[str, one_of("choice", LR_SCHEDULES)]
    """Learning rate schedule over all steps of all epochs: constant, cosine or one-cycle."""
    batch_size: AtLeastOne
    """Images per step, at least 1."""
    epochs: AtLeastOne
    """Number of training epochs, at least 1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    """Label smoothing, in [0, 1)."""
    augmentation: Annotated[str, one_of("choice", AUGMENTATIONS)]
    """Augmentation of the training images: none, or flip, or one of the others and a flip."""
    image_size: Annotated[int, Field(ge=32), WrapValidator(_own_or_given)]
    """Side of the network's square input image, in pixels, at least 32; auto becomes the model's own side."""
    fit: Annotated[str, one_of("choice", FITS)] = "crop"
    """What happens to images that are not square: crop, pad (with black) or squash; the same for a study's trials."""
    class_weights: Annotated[str, one_of("choice", CLASS_WEIGHTS)] = "none"
    """Weights of the classes in the training loss: none, or balanced, in inverse proportion to their images."""
    head_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the head as a multiple of `lr`, above 0."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor in (0, 1] by which each trained block learns more slowly than the one after it; 1 for one rate for all."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of all steps in which the learning rate rises to its peak, in [0, 1)."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of a step's gradients; 0 for no limit."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the average of the weights that is evaluated and kept, in [0, 1); 0 for the weights alone."""
    views: Annotated[int, Field(ge=0)] = 0
    """Number of epochs with an order and augmentation of their own, which later epochs repeat; 0 for all epochs."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Parameter of the beta distribution of the shares in which mixup blends two images; 0 for no mixup."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Parameter of the beta distribution of the shares in which CutMix joins two images; 0 for no CutMix."""
    head_init: Annotated[str, one_of("choice", HEAD_INITS)] = "random"
    """Initial weights of a new last layer: random, or those of a linear probe (arXiv:2202.10054)."""

    def __post_init__(self) -> None:
        """Check that the model accepts images of this size.

        Raises:
            ConfigError: it does not.
        """
        check_size(self.model, self.image_size)

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields as plain values, in the order of their definition.

        A field that switches something on is left out while that is off: records and tables show what is in use, and
        earlier versions can read them.
        """
        fields: dict[str, str | int | float] = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in OFF or value != OFF[name]}

    @property
    def unused(self) -> frozenset[str]:
        """Fields whose values do nothing in this recipe: the momentum, unless the optimizer has one."""
        return unused_fields(self.optimizer)

    def changes_from(self, other: "Recipe") -> dict[str, Any]:
        """Return the fields whose values differ from those of another recipe, with the values of this one."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value != getattr(other, name)}


_ALWAYS_SHOWN = {"fit", "class_weights"}
OFF = {
    field.name: field.default
    for field in dataclasses.fields(Recipe)
    if field.default is not dataclasses.MISSING and field.name not in _ALWAYS_SHOWN
}
"""Fields that switch something on, each with the value that leaves it off."""


def unused_fields(optimizer: str) -> frozenset[str]:
    """Return the fields whose values do nothing with an optimizer."""
    return frozenset() if optimizer == "sgd" else frozenset({"momentum"})


def shown_fields(recipes: Iterable[Recipe], searched: Iterable[str] = ()) -> list[str]:
    """Return the fields that a table of these recipes shows, in their order: the searched ones, and all in use."""
    shown = {*searched}.union(*(recipe.to_dict() for recipe in recipes))
    return [field.name for field in dataclasses.fields(Recipe) if field.name in shown]
