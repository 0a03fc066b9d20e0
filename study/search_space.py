"""Read `search_spaces/*.toml` into checked values: a search's domains, base recipe, budget, pruner and resources.

Knows neither Optuna's distributions nor Ray's resources; other modules build both from these values. So every mistake
in a file is reported before anything slow starts.
"""

import dataclasses
import math
import re
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard, TypeVar

from study.config import Recipe, search_spaces_directory
from study.errors import ConfigError, unknown_name
from study.families import FAMILIES

FIELDS: Mapping[str, Any] = {field.name: field.type for field in dataclasses.fields(Recipe) if field.name != "model"}
"""Type of each recipe field that can be searched or fixed: all fields but the model, which is a key of the file."""


@dataclass(frozen=True)
class Int:
    """Whole numbers from `low` to `high`, both included; `log` samples on a logarithmic scale."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        """Check the bounds."""
        for key in ("low", "high"):
            _require(type(getattr(self, key)) is int, f"{key} must be a whole number", getattr(self, key))
        _check_bounds(self)

    def __contains__(self, value: object) -> bool:
        """Tell whether the domain holds `value`."""
        return type(value) is int and self.low <= value <= self.high


@dataclass(frozen=True)
class Float:
    """Real numbers from `low` to `high`, both included; `log` samples on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Check the bounds and convert whole numbers to floats."""
        for key in ("low", "high"):
            value = getattr(self, key)
            _require(_is_number(value) and math.isfinite(value), f"{key} must be a finite number", value)
            object.__setattr__(self, key, float(value))
        _check_bounds(self)

    def __contains__(self, value: object) -> bool:
        """Tell whether the domain holds `value`."""
        return type(value) is float and self.low <= value <= self.high


@dataclass(frozen=True)
class Categorical:
    """A few values without order."""

    choices: tuple[str | int | float, ...]

    def __post_init__(self) -> None:
        """Check the choices."""
        _require(len(self.choices) > 0, "choices must hold at least one value", [])
        for choice in self.choices:
            _require(type(choice) in (str, int, float), "choices must be strings or numbers", choice)
            _require(self.choices.count(choice) == 1, "choices must differ from each other", choice)

    def __contains__(self, value: object) -> bool:
        """Tell whether the domain holds `value`."""
        return value in self.choices


Domain = Int | Float | Categorical
_Section = TypeVar("_Section")


@dataclass(frozen=True)
class Budget:
    """Limits of a search, which ends as soon as one limit is reached."""

    trials: int = 20
    """Number of trials, at least 1, including the baseline's own trial."""
    time_s: float | None = None
    """Wall-clock time in seconds, above 0; None for no limit."""

    def __post_init__(self) -> None:
        """Check both limits."""
        _check_whole("trials", self.trials, at_least=1)
        _require(self.time_s is None or 0 < self.time_s < math.inf, "time_s: must be above 0", self.time_s)


@dataclass(frozen=True)
class Pruner:
    """Rule that stops weak trials early: asha is asynchronous successive halving (arXiv:1810.05934)."""

    name: str = "asha"
    """Method: asha, or none to let every trial finish."""
    min_epochs: int = 1
    """Number of epochs that every trial trains, at least 1."""
    reduction_factor: int = 2
    """Factor f, at least 2: after min_epochs · 1, f, f² … epochs, about one trial in f continues."""

    def __post_init__(self) -> None:
        """Check every field."""
        _require(self.name in ("asha", "none"), "name: must be 'asha' or 'none'", self.name)
        _check_whole("min_epochs", self.min_epochs, at_least=1)
        _check_whole("reduction_factor", self.reduction_factor, at_least=2)


@dataclass(frozen=True)
class Resources:
    """Resources that the file requests; None to choose by the machine."""

    cpus_per_trial: float | None = None
    """CPU cores per trial, above 0."""
    gpus_per_trial: float | None = None
    """GPUs per trial, at least 0; a fraction lets trials share a GPU."""
    concurrent: int | None = None
    """Maximum number of trials at a time, at least 1."""

    def __post_init__(self) -> None:
        """Check every field that is not None."""
        cpus, gpus = self.cpus_per_trial, self.gpus_per_trial
        if cpus is not None:
            _require(_is_number(cpus) and 0 < cpus < math.inf, "cpus_per_trial: must be a number above 0", cpus)
        if gpus is not None:
            _require(_is_number(gpus) and 0 <= gpus < math.inf, "gpus_per_trial: must be a number, at least 0", gpus)
        if self.concurrent is not None:
            _check_whole("concurrent", self.concurrent, at_least=1)


@dataclass(frozen=True)
class SearchSpace:
    """Recipes that a search may try, with its budget, pruner and resources."""

    name: str
    """Name of the file, without .toml."""
    file: Path
    """Absolute path of the file."""
    domains: Mapping[str, Domain]
    """Domain of each searched recipe field; at least one field, never the model."""
    base: Recipe
    """Recipe that holds the values of all other fields: the baseline's recipe, overridden by [fixed]."""
    budget: Budget
    pruner: Pruner
    resources: Resources

    def __post_init__(self) -> None:
        """Check that every recipe of the space is valid; the ends of a domain suffice, as a recipe's rules are ranges.

        Raises:
            ConfigError: the space is empty, or a value breaks a rule of the recipe.
        """
        _require(len(self.domains) > 0, "space: must name at least one field of the recipe", {})
        for field, domain in self.domains.items():
            for value in domain.choices if isinstance(domain, Categorical) else (domain.low, domain.high):
                with _within("space."):
                    self.recipe({field: value})

    def contains(self, recipe: Recipe) -> bool:
        """Tell whether `recipe` is in the space: searched fields in their domains, all other fields as in the base."""
        values = {field: getattr(recipe, field) for field in self.domains}
        return recipe == self.recipe(values) and all(values[field] in self.domains[field] for field in values)

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the base recipe with `values` for searched fields."""
        return dataclasses.replace(self.base, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON values; `from_dict` is the inverse."""
        domains = {}
        for field, domain in self.domains.items():
            kept = {"choices": [*domain.choices]} if isinstance(domain, Categorical) else dataclasses.asdict(domain)
            domains[field] = {"type": type(domain).__name__.lower(), **kept}
        sections = {key: dataclasses.asdict(getattr(self, key)) for key in ("budget", "pruner", "resources")}
        return {"name": self.name, "file": str(self.file), "space": domains, "base": self.base.to_dict(), **sections}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a space from the values that `to_dict` returned.

        Raises:
            ConfigError: the values do not form a valid space.
        """
        return cls(
            values["name"],
            Path(values["file"]),
            {field: _domain(values["space"], field) for field in values["space"]},
            Recipe.from_dict(values["base"]),
            _section(values, "budget", Budget),
            _section(values, "pruner", Pruner),
            _section(values, "resources", Resources),
        )


@dataclass(frozen=True)
class Baseline:
    """The assignment's models, data and recipe, as read from `baseline.toml`."""

    models: tuple[str, ...]
    fraction: float
    """Fraction of CIFAR-10's training and of its test images, in (0, 1]."""
    seed: int
    """Default seed, at least 0."""
    values: Mapping[str, Any]
    """Fields of the recipe, without the model."""


def load_baseline() -> Baseline:
    """Read the assignment's models, data and recipe.

    Raises:
        ConfigError: the shipped file was edited and now breaks a rule.
    """
    file = search_spaces_directory() / "baseline.toml"
    with _within(f"{file}: "):
        document = _read(file)
        _check_keys(document, required=("models", "data", "recipe"))
        models = document["models"]
        known = isinstance(models, list) and len(models) > 0 and all(model in [*FAMILIES] for model in models)
        _require(known, "models: must be a list of known models", models)
        data = _table(document, "data", required=("cifar10_fraction", "seed"))
        fraction, seed = data["cifar10_fraction"], data["seed"]
        with _within("data."):
            _require(_is_number(fraction) and 0 < fraction <= 1, "cifar10_fraction: must be in (0, 1]", fraction)
            _check_whole("seed", seed, at_least=0)
        values = _table(document, "recipe", required=FIELDS)
        with _within("recipe."):
            Recipe(model=models[0], **values)
    return Baseline(tuple(models), fraction, seed, values)


def baseline_recipe(model: str) -> Recipe:
    """Return the assignment's recipe for `model`.

    Raises:
        ConfigError: `model` is no key of FAMILIES.
    """
    return Recipe(model=model, **load_baseline().values)


def load_space(name: str) -> SearchSpace:
    """Read and check a search space.

    Args:
        name: name of a shipped space, such as vgg16, or path of a TOML file.

    Raises:
        ConfigError: the space does not exist or breaks a rule. The message names file, key, rule and value.
    """
    shipped = {file.stem: file for file in search_spaces_directory().glob("*.toml") if file.stem != "baseline"}
    file = shipped.get(name, Path(name).expanduser().absolute())
    if not file.is_file():
        raise ConfigError(f"{name}: no such file; {unknown_name('shipped search space', file.stem, shipped)}")
    with _within(f"{file if name in shipped else name}: "):
        document = _read(file)
        _check_keys(document, required=("model", "space"), optional=("fixed", "budget", "pruner", "resources"))
        base = baseline_recipe(document["model"])
        space, fixed = (_table(document, key, optional=FIELDS) for key in ("space", "fixed"))
        for field, value in fixed.items():
            _require(field not in space, f"fixed.{field}: must not be in [space] too", value)
        with _within("fixed."):
            base = dataclasses.replace(base, **fixed)
        with _within("space."):
            domains = {field: _domain(space, field) for field in space}
        budget = _table(document, "budget", optional=("trials", "time"))
        if "time" in budget:
            budget["time_s"] = parse_duration(budget.pop("time"), place="budget.time")
        document["budget"] = budget
        return SearchSpace(
            file.stem,
            file,
            domains,
            base,
            _section(document, "budget", Budget),
            _section(document, "pruner", Pruner),
            _section(document, "resources", Resources),
        )


def parse_duration(text: str, place: str = "time") -> float:
    """Return the seconds of a duration such as 90s, 30m, 2h or 1h30m; `place` is the flag or key for errors.

    Raises:
        ConfigError: `text` is no such duration, or the duration is zero.
    """
    parts = (
        re.fullmatch(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text, re.ASCII)
        if isinstance(text, str)
        else None
    )
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    _require(total > 0, f"{place}: must be a duration such as '90s', '30m', '2h' or '1h30m'", text)
    return float(total)


def _domain(space: Mapping[str, Any], field: str) -> Domain:
    table = _table(space, field, optional=("type", "low", "high", "log", "choices"))
    wanted = FIELDS[field]
    kinds = ["categorical"] if wanted is str else [wanted.__name__, "categorical"]
    with _within(f"{field}: "):
        kind = table.get("type")
        _require(kind in kinds, f"type must be {' or '.join(map(repr, kinds))}", kind)
        if kind != "categorical":
            _check_keys(table, required=("type", "low", "high"), optional=("log",))
            bounds = table["low"], table["high"], table.get("log", False)
            return Int(*bounds) if wanted is int else Float(*bounds)
        _check_keys(table, required=("type", "choices"))
        choices = table["choices"]
        _require(isinstance(choices, list), "choices must be a list", choices)
        if wanted is float:  # 0 becomes 0.0, as in the recipe
            _require(all(_is_number(choice) for choice in choices), "choices must be numbers", choices)
            choices = [float(choice) for choice in choices]
        return Categorical(tuple(choices))


def _section(document: Mapping[str, Any], key: str, kind: type[_Section]) -> _Section:
    """Build a `kind`, whose fields all have defaults, from the table `key`."""
    table = _table(document, key, optional=kind.__annotations__)
    with _within(f"{key}."):
        return kind(**table)


def _table(
    document: Mapping[str, Any], key: str, required: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return a copy of the table `key`, or an empty one if it is missing; check the table's keys."""
    table = document.get(key, {})
    with _within(f"{key}: "):
        _require(isinstance(table, dict), "must be a table", table)
        _check_keys(table, required, optional)
    return dict(table)


def _check_keys(table: Mapping[str, Any], required: Collection[str], optional: Collection[str] = ()) -> None:
    for key in table:
        if key not in [*required, *optional]:
            raise ConfigError(unknown_name("key", key, [*required, *optional]))
    for key in required:
        if key not in table:
            raise ConfigError(f"{key} must be given, but is missing.")


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"must be readable, but got: {error.strerror}.") from None
    except ValueError as error:  # wrong syntax (the message has line and column) or wrong encoding
        raise ConfigError(f"must be TOML, but got: {error}.") from None


def _check_bounds(domain: Int | Float) -> None:
    _require(type(domain.log) is bool, "log must be true or false", domain.log)
    _require(domain.low <= domain.high, f"low must be at most high, {domain.high!r}", domain.low)
    _require(not domain.log or domain.low > 0, "low must be above 0 when log = true", domain.low)


def _check_whole(key: str, value: object, *, at_least: int) -> None:
    _require(type(value) is int and value >= at_least, f"{key}: must be a whole number, at least {at_least}", value)


def _is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether `value` is a number within the range of floats; whole numbers in TOML can exceed it."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{rule}, but got {value!r}.")


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Prefix the messages of configuration errors with `place`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None
