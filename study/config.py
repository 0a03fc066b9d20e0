"""Define and check the settings of a study: a Recipe for each trial, a StudyConfig for the whole study.

Knows no torch, Ray, Optuna or MLflow, so that every mistake is reported before anything slow starts.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from study.errors import ConfigError, RecordError, unknown_name
from study.families import FAMILIES

OPTIMIZERS = ("adam", "adamw", "sgd")
LR_SCHEDULES = ("constant", "cosine", "one-cycle")
AUGMENTATIONS = ("autoaugment", "none")
DEPTHS = range(6)
"""Unfreeze depths: from the head alone (0) to the head and all five blocks (5)."""


SQLITE = "sqlite:///"
HOST = "127.0.0.1"
"""Address of the MLflow UI: only this machine can open the UI."""
PORT = 5000
"""Default port of the MLflow UI."""
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def find_study(name: str, mlruns: Path) -> Path:
    """Return the directory of the study `name`; 'latest' is the study whose journal changed last.

    Raises:
        ConfigError: no such study exists below `mlruns`.
    """
    journals = list((mlruns / "studies").glob("[!.]*/journal.log"))
    if not journals:
        raise ConfigError(f"{mlruns}: must hold a study, but holds none. Change to the directory of your study.")
    if name == "latest":
        return max(journals, key=lambda journal: journal.stat().st_mtime).parent
    known = {journal.parent.name: journal.parent for journal in journals}
    if name not in known:
        raise ConfigError(unknown_name("study", name, known))
    return known[name]


def check_new(directory: Path) -> None:
    """Check that no study exists in `directory`.

    Raises:
        RecordError: a study exists there.
    """
    if directory.exists():
        raise RecordError(
            f"{directory}: a study named {directory.name!r} exists. Choose another --name, or --resume it."
        )


def local_uri(mlruns: Path) -> str:
    """Return the URI of MLflow's default tracking store: a SQLite file in `mlruns`."""
    return f"{SQLITE}{mlruns / 'mlflow.db'}"


def existing_store(tracking_uri: str | None, mlruns: Path) -> str:
    """Return `tracking_uri`, or the URI of the default store in `mlruns` if it is None.

    Raises:
        ConfigError: the store is a SQLite file that does not exist.
    """
    uri = tracking_uri or local_uri(mlruns)
    file = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not file.is_file():
        raise ConfigError(
            f"{file}: must be MLflow's database, but there is none."
            " Run a study first, or change to the directory where one was run."
        )
    return uri


def search_spaces_directory() -> Path:
    """Return the directory of the shipped `*.toml`: in the installed package, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "search_spaces"
    return installed if installed.is_dir() else here.parent / "search_spaces"


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of one trial. Fields have no defaults here: `baseline.toml` holds the default values."""

    model: str
    """Name of a torchvision classifier: a key of FAMILIES."""
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
        if self.model not in FAMILIES:
            raise ConfigError(unknown_name("model", self.model, FAMILIES))
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        _check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        _check(self.unfreeze_depth in DEPTHS, "unfreeze_depth", "must be 0 to 5", self.unfreeze_depth)
        _check(math.isfinite(self.lr) and self.lr > 0, "lr", "must be above 0", self.lr)
        _check(0 <= self.momentum < 1, "momentum", "must be in [0, 1)", self.momentum)
        _check(0 <= self.weight_decay < math.inf, "weight_decay", "must be at least 0", self.weight_decay)
        _check(self.batch_size >= 1, "batch_size", "must be at least 1", self.batch_size)
        _check(self.epochs >= 1, "epochs", "must be at least 1", self.epochs)
        _check(0 <= self.label_smoothing < 1, "label_smoothing", "must be in [0, 1)", self.label_smoothing)
        _check(self.image_size >= 32, "image_size", "must be at least 32", self.image_size)

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


@dataclass(frozen=True)
class Plan:
    """One trial to run."""

    number: int
    """Optuna's trial number, from 0; the verdict's trials are counted separately."""
    stage: str
    """Part of the study: baseline, as-written, search, or final (a refit for the verdict)."""
    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """Unique name of the trial within its study; the prefix is needed since the verdict counts from 0 again."""
        return f"final-{self.number}" if self.stage == "final" else str(self.number)

    @property
    def checkpoint(self) -> str:
        """Name of the trial's checkpoint file."""
        return f"{self.key}.safetensors"

    @property
    def title(self) -> str:
        """Label that distinguishes the trial from the others of its study."""
        recipe = self.recipe
        kind = {"as-written": " · as written", "final": f" · seed {self.seed}"}.get(self.stage, "")
        return (
            f"#{self.key} {recipe.model} · depth {recipe.unfreeze_depth} · lr {recipe.lr:.2g}"
            f" · batch {recipe.batch_size}{kind}"
        )


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study besides its recipes; paths are absolute, since Ray Tune changes the working directory."""

    name: str
    """Name of the study and of its directory: at most 64 letters, digits, '.', '_' or '-'."""
    data: str
    """Image data set: cifar10, digits, or the path of a folder with train/<class>/* and test/<class>/*."""
    data_dir: Path
    """Directory of downloaded data sets."""
    fraction: float
    """Fraction of the training and of the test images to use, in (0, 1]."""
    weights: str
    """Initial weights: imagenet, none (random), or the path of a state dict."""
    seed: int
    """Seed from which all others are derived, at least 0."""
    precision: str
    """Precision of the arithmetic: auto, bf16 or fp32."""
    mlruns: Path
    """Directory for everything that a study writes."""
    tracking_uri: str | None
    """URI of MLflow's tracking store; None for a SQLite file in `mlruns`."""
    ray_address: str | None
    """Address of an existing Ray cluster; None to start a local Ray."""
    cpus_per_trial: float | None
    """CPU cores per trial, above 0; None to choose by the machine."""
    gpus_per_trial: float | None
    """GPUs per trial, at least 0; a fraction lets trials share a GPU. None to choose by the machine."""
    concurrent: int | None
    """Maximum number of trials at a time, at least 1; None to choose by the machine."""
    cache_gb: float | None
    """Maximum size of the feature cache in GB; 0 for no cache, None for a fifth of the free disk, at most 50."""
    verbose: bool
    """Show the messages of Ray, Optuna and MLflow."""

    def __post_init__(self) -> None:
        """Check all that can be checked without loading images or weights.

        Raises:
            ConfigError: a value breaks its rule.
        """
        if not STUDY_NAME.fullmatch(self.name) or self.name == "latest":
            rule = "must be 1 to 64 letters, digits, '.', '_' or '-', begin with a letter or digit, and not be 'latest'"
            raise ConfigError(f"--name: {rule}, but got {self.name!r}.")
        _check(0 < self.fraction <= 1, "--fraction", "must be in (0, 1]", self.fraction)
        _check(self.seed >= 0, "--seed", "must be at least 0", self.seed)
        for flag, value in (("--cpus-per-trial", self.cpus_per_trial), ("--concurrent", self.concurrent)):
            _check(value is None or 0 < value < math.inf, flag, "must be above 0", value)
        gpus = self.gpus_per_trial
        cache_gb = self.cache_gb
        _check(cache_gb is None or 0 <= cache_gb < math.inf, "--cache-gb", "must be at least 0", cache_gb)
        _check(gpus is None or 0 <= gpus < math.inf, "--gpus-per-trial", "must be at least 0", gpus)


def _check(holds: bool, field: str, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{field}: {rule}, but got {value!r}.")


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{field}: {unknown_name('choice', value, choices)}")
