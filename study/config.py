"""The values a study is made of: a Recipe for each trial, a StudyConfig for the whole. Both check themselves.

Knows no torch, Ray, Optuna or MLflow, so that every mistake is told before anything slow starts.
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
"""Five blocks: from the head alone (0) to the whole network (5)."""


SQLITE = "sqlite:///"
HOST = "127.0.0.1"
"""Where MLflow's UI is served: on this machine, for it alone."""
PORT = 5000
"""Of the UI, where no other is asked for."""
STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def find_study(name: str, mlruns: Path) -> Path:
    """Return the directory of the study of that name, or of the one that was run last for 'latest'.

    Raises:
        ConfigError: there is none.
    """
    journals = list((mlruns / "studies").glob("[!.]*/journal.log"))
    if not journals:
        raise ConfigError(f"{mlruns}: must hold a study, but holds none. Go where it was run.")
    if name == "latest":
        return max(journals, key=lambda journal: journal.stat().st_mtime).parent
    known = {journal.parent.name: journal.parent for journal in journals}
    if name not in known:
        raise ConfigError(unknown_name("study", name, known))
    return known[name]


def check_new(directory: Path) -> None:
    """Make sure that a study of that name is yet to be made.

    Raises:
        RecordError: there is one.
    """
    if directory.exists():
        raise RecordError(
            f"{directory}: a study named {directory.name!r} exists. Choose another --name, or --resume it."
        )


def local_uri(mlruns: Path) -> str:
    """Return MLflow's store where no --tracking-uri is given: a SQLite file below `mlruns`."""
    return f"{SQLITE}{mlruns / 'mlflow.db'}"


def existing_store(tracking_uri: str | None, mlruns: Path) -> str:
    """Return the store that is meant, by default the one below `mlruns`.

    Raises:
        ConfigError: it is a file that is not there.
    """
    uri = tracking_uri or local_uri(mlruns)
    file = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not file.is_file():
        raise ConfigError(
            f"{file}: must be MLflow's database, but there is none. Run a study first, or go where it was."
        )
    return uri


def search_spaces_directory() -> Path:
    """Return where the shipped `*.toml` lie: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "search_spaces"
    return installed if installed.is_dir() else here.parent / "search_spaces"


@dataclass(frozen=True)
class Recipe:
    """How one trial fine-tunes one pretrained classifier; no field has a default, `baseline.toml` holds them."""

    model: str
    """One of torchvision's classifiers, as `families.py` names them."""
    unfreeze_depth: int
    """Blocks trained besides the head, counted from the head, 0 to 5."""
    optimizer: str
    """adam, adamw or sgd (with momentum)."""
    lr: float
    """Peak learning rate, above 0."""
    momentum: float
    """Of sgd, in [0, 1); adam and adamw do not use it."""
    weight_decay: float
    """At least 0."""
    lr_schedule: str
    """constant, cosine or one-cycle, over all steps of all epochs."""
    batch_size: int
    """Images a step, at least 1."""
    epochs: int
    """At least 1."""
    label_smoothing: float
    """In [0, 1)."""
    augmentation: str
    """autoaugment (CIFAR-10 policy, with a horizontal flip) or none."""
    image_size: int
    """Side of the square that the network sees, in pixels, at least 32."""

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
        """Build a recipe from plain values, as TOML or JSON give them.

        Raises:
            ConfigError: a key is missing, unknown or wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(unknown_name("key", key, known))
        if missing := [key for key in known if key not in values]:
            raise ConfigError(f"{', '.join(missing)}: must be given, but is missing.")
        return cls(**values)

    def to_dict(self) -> dict[str, str | int | float]:
        """Return the fields as plain values, in order."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Plan:
    """A trial to be run."""

    number: int
    """Given by Optuna, from 0."""
    stage: str
    """baseline, as-written, search or final."""
    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """Names the trial within its study; the verdict's trials have numbers of their own."""
        return f"final-{self.number}" if self.stage == "final" else str(self.number)

    @property
    def checkpoint(self) -> str:
        """The name of the file that keeps its weights."""
        return f"{self.key}.safetensors"

    @property
    def title(self) -> str:
        """What tells the trial from the others of its study."""
        recipe = self.recipe
        kind = {"as-written": " · as written", "final": f" · seed {self.seed}"}.get(self.stage, "")
        return (
            f"#{self.key} {recipe.model} · depth {recipe.unfreeze_depth} · lr {recipe.lr:.2g}"
            f" · batch {recipe.batch_size}{kind}"
        )


@dataclass(frozen=True)
class StudyConfig:
    """What a study needs besides its recipes; every path is absolute, since Ray Tune changes directories."""

    name: str
    """Letters, digits, '.', '_' and '-', at most 64: it names the study's directory."""
    data: str
    """cifar10, digits, or the path of a folder with train/<class>/* and test/<class>/*."""
    data_dir: Path
    """Where downloads are kept."""
    fraction: float
    """Share of the training and of the test images that is used, in (0, 1]."""
    weights: str
    """imagenet, none, or the path of a state dict."""
    seed: int
    """At least 0."""
    precision: str
    """auto, bf16 or fp32."""
    mlruns: Path
    """Where everything that a study writes is kept."""
    tracking_uri: str | None
    """MLflow's store; None for a SQLite file below `mlruns`."""
    ray_address: str | None
    """Of an existing cluster; None for a Ray of our own."""
    cpus_per_trial: float | None
    """Above 0; None to choose by what there is, like the next two."""
    gpus_per_trial: float | None
    """At least 0; a fraction lets trials share a GPU."""
    concurrent: int | None
    """Trials at a time, at least 1."""
    cache_gb: float | None
    """Bound on the feature store in GB, at least 0, where 0 is none; None for a fifth of the free disk, at most 50."""
    verbose: bool
    """Let Ray, Optuna and MLflow speak."""

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything.

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
