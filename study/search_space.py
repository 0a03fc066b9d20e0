"""What a search varies, for how long and with what: `search_spaces/*.toml` read into values that check themselves.

Knows neither Optuna's distributions nor Ray's resources, which others make of these values, so that every mistake in a
file is told before anything slow starts.
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
"""What may be searched or fixed, and its type: all of a recipe but the model, which is a key of the file."""


@dataclass(frozen=True)
class Int:
    """Whole numbers from `low` to `high`, both included; evenly by their logarithm if `log`."""

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
    """Numbers from `low` to `high`, both included; evenly by their logarithm if `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Check the bounds; whole numbers become floats."""
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
    """One of a few values, whose order means nothing."""

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
    """When a search ends: with its last trial or with its time, whichever comes first."""

    trials: int = 20
    """At least 1, the baseline's own trial included."""
    time_s: float | None = None
    """Wall clock, above 0; None for no limit."""

    def __post_init__(self) -> None:
        """Check both limits."""
        _check_whole("trials", self.trials, at_least=1)
        _require(self.time_s is None or 0 < self.time_s < math.inf, "time_s: must be above 0", self.time_s)


@dataclass(frozen=True)
class Pruner:
    """When hopeless trials end early: asha is asynchronous successive halving (arXiv:1810.05934)."""

    name: str = "asha"
    """asha or none."""
    min_epochs: int = 1
    """Epochs that every trial gets, at least 1."""
    reduction_factor: int = 2
    """f: after min_epochs · 1, f, f² … epochs, about one trial of f goes on; at least 2."""

    def __post_init__(self) -> None:
        """Check every field."""
        _require(self.name in ("asha", "none"), "name: must be 'asha' or 'none'", self.name)
        _check_whole("min_epochs", self.min_epochs, at_least=1)
        _check_whole("reduction_factor", self.reduction_factor, at_least=2)


@dataclass(frozen=True)
class Resources:
    """What the file asks for; None leaves it to what the machine has."""

    cpus_per_trial: float | None = None
    """Above 0."""
    gpus_per_trial: float | None = None
    """At least 0; a fraction lets trials share a GPU."""
    concurrent: int | None = None
    """Trials at a time, at least 1."""

    def __post_init__(self) -> None:
        """Check what is given."""
        cpus, gpus = self.cpus_per_trial, self.gpus_per_trial
        if cpus is not None:
            _require(_is_number(cpus) and 0 < cpus < math.inf, "cpus_per_trial: must be a number above 0", cpus)
        if gpus is not None:
            _require(_is_number(gpus) and 0 <= gpus < math.inf, "gpus_per_trial: must be a number, at least 0", gpus)
        if self.concurrent is not None:
            _check_whole("concurrent", self.concurrent, at_least=1)


@dataclass(frozen=True)
class SearchSpace:
    """The recipes that a search may try, and what it may spend."""

    name: str
    """The file's, without .toml."""
    file: Path
    """Absolute."""
    domains: Mapping[str, Domain]
    """By field of the recipe, at least one; never the model."""
    base: Recipe
    """What is not searched comes from here: the baseline's recipe, overridden by [fixed]."""
    budget: Budget
    pruner: Pruner
    resources: Resources

    def __post_init__(self) -> None:
        """Check that every recipe of the space is one: a recipe's own rules are ranges, so a domain's ends suffice.

        Raises:
            ConfigError: the space is empty, or holds a value that breaks the recipe's rule.
        """
        _require(len(self.domains) > 0, "space: must name at least one field of the recipe", {})
        for field, domain in self.domains.items():
            for value in domain.choices if isinstance(domain, Categorical) else (domain.low, domain.high):
                with _within("space."):
                    self.recipe({field: value})

    def contains(self, recipe: Recipe) -> bool:
        """Tell whether the search could try `recipe`: searched fields in their domains, all others as in the base."""
        values = {field: getattr(recipe, field) for field in self.domains}
        return recipe == self.recipe(values) and all(values[field] in self.domains[field] for field in values)

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with these values of searched fields."""
        return dataclasses.replace(self.base, **values)

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON values, from which `from_dict` builds it again."""
        domains = {}
        for field, domain in self.domains.items():
            kept = {"choices": [*domain.choices]} if isinstance(domain, Categorical) else dataclasses.asdict(domain)
            domains[field] = {"type": type(domain).__name__.lower(), **kept}
        sections = {key: dataclasses.asdict(getattr(self, key)) for key in ("budget", "pruner", "resources")}
        return {"name": self.name, "file": str(self.file), "space": domains, "base": self.base.to_dict(), **sections}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the space that `to_dict` was called on.

        Raises:
            ConfigError: the values are of no space.
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
    """The assignment, as `baseline.toml` states it."""

    models: tuple[str, ...]
    fraction: float
    """Of CIFAR-10's training and of its test images, in (0, 1]."""
    seed: int
    """At least 0."""
    values: Mapping[str, Any]
    """The recipe without its model."""


def load_baseline() -> Baseline:
    """Read the assignment's models, data and recipe.

    Raises:
        ConfigError: the shipped file was changed into one that breaks a rule.
    """
    file = search_spaces_directory() / "baseline.toml"
    with _within(f"{file}: "):
        document = _read(file)
        _check_keys(document, required=("models", "data", "recipe"))
        models = document["models"]
        known = isinstance(models, list) and len(models) > 0 and all(model in [*FAMILIES] for model in models)
        _require(known, "models: must be a list of models that families.py knows", models)
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
    """Return the assignment's recipe for any model that `families.py` knows.

    Raises:
        ConfigError: it does not know `model`.
    """
    return Recipe(model=model, **load_baseline().values)


def load_space(name: str) -> SearchSpace:
    """Read a search space and check all of it.

    Args:
        name: of a shipped space, such as vgg16, or else the path of a TOML file.

    Raises:
        ConfigError: there is no such space, or it breaks a rule; names file, key, rule and value.
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
            _require(field not in space, f"fixed.{field}: must not stand in [space] too", value)
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
    """Return the seconds of 90s, 30m, 2h or 1h30m; `place` names the flag or key for the error.

    Raises:
        ConfigError: the text is no such duration, or one of no time at all.
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
    """Build a dataclass, all of whose fields have defaults, from the table of its name."""
    table = _table(document, key, optional=kind.__annotations__)
    with _within(f"{key}."):
        return kind(**table)


def _table(
    document: Mapping[str, Any], key: str, required: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, Any]:
    """Return the table of that key, empty where there is none, its own keys checked."""
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
    except ValueError as error:  # of its syntax, with line and column, or of its encoding
        raise ConfigError(f"must be TOML, but got: {error}.") from None


def _check_bounds(domain: Int | Float) -> None:
    _require(type(domain.log) is bool, "log must be true or false", domain.log)
    _require(domain.low <= domain.high, f"low must be at most high, {domain.high!r}", domain.low)
    _require(not domain.log or domain.low > 0, "low must be above 0 when log = true", domain.low)


def _check_whole(key: str, value: object, *, at_least: int) -> None:
    _require(type(value) is int and value >= at_least, f"{key}: must be a whole number, at least {at_least}", value)


def _is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether it is a number that a float can hold: TOML has longer whole numbers."""
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{rule}, but got {value!r}.")


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Put the place in front of what an error says."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None
