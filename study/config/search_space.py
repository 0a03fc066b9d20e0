"""Define the search space: which fields of a recipe are searched, in which bounds, and what the search may spend.

Knows neither Optuna's distributions nor Ray's resources: the adapters translate these values into them.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_type_hints

from pydantic import Field

from study.config.recipe import Number, Recipe
from study.config.validation import Mistakes, check_keys, checked, is_number, one_of, read_table, require, within

FIELDS: Mapping[str, Any] = {name: kind for name, kind in get_type_hints(Recipe).items() if name != "model"}
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
            require(type(getattr(self, key)) is int, f"{key} must be a whole number", getattr(self, key))
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
            require(is_number(value) and math.isfinite(value), f"{key} must be a finite number", value)
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
        require(len(self.choices) > 0, "choices must hold at least one value", [])
        for choice in self.choices:
            require(type(choice) in (str, int, float), "choices must be strings or numbers", choice)
            require(self.choices.count(choice) == 1, "choices must differ from each other", choice)

    def __contains__(self, value: object) -> bool:
        """Tell whether the domain holds `value`."""
        return value in self.choices


Domain = Int | Float | Categorical

_Section = TypeVar("_Section")


@checked()
class Budget:
    """Limits of a search, which ends as soon as one limit is reached."""

    trials: Annotated[int, Field(ge=1)] = 20
    """Number of trials, at least 1, including the baseline's own trial."""
    time_s: Annotated[Number, Field(gt=0)] | None = None
    """Wall-clock time in seconds, above 0; None for no limit."""


@checked()
class Pruner:
    """Rule that stops weak trials early: asha is asynchronous successive halving (arXiv:1810.05934)."""

    name: Annotated[str, one_of("asha", "none")] = "asha"
    """Method: asha, or none to let every trial finish."""
    min_epochs: Annotated[int, Field(ge=1)] = 1
    """Number of epochs that every trial trains, at least 1."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Factor f, at least 2: after min_epochs · 1, f, f² … epochs, about one trial in f continues."""


@checked()
class Resources:
    """Resources that the file requests; None to choose by the machine."""

    cpus_per_trial: Annotated[Number, Field(gt=0)] | None = None
    """CPU cores per trial, above 0."""
    gpus_per_trial: Annotated[Number, Field(ge=0)] | None = None
    """GPUs per trial, at least 0; a fraction lets trials share a GPU."""
    concurrent: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of trials at a time, at least 1."""


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
        require(len(self.domains) > 0, "space: must name at least one field of the recipe", {})
        mistakes = Mistakes()
        for field, domain in self.domains.items():
            for value in domain.choices if isinstance(domain, Categorical) else (domain.low, domain.high):
                with mistakes.collected(), within("space."):
                    self.recipe({field: value})
        mistakes.report()

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
            {field: read_domain(values["space"], field) for field in values["space"]},
            Recipe.from_dict(values["base"]),
            read_section(values, "budget", Budget),
            read_section(values, "pruner", Pruner),
            read_section(values, "resources", Resources),
        )


def read_domain(space: Mapping[str, Any], field: str) -> Domain:
    """Read the domain of one field from a table of domains."""
    table = read_table(space, field, optional=("type", "low", "high", "log", "choices"))
    wanted = FIELDS[field]
    kinds = ["categorical"] if wanted is str else [wanted.__name__, "categorical"]
    with within(f"{field}: "):
        kind = table.get("type")
        require(kind in kinds, f"type must be {' or '.join(map(repr, kinds))}", kind)
        if kind != "categorical":
            check_keys(table, required=("type", "low", "high"), optional=("log",))
            bounds = table["low"], table["high"], table.get("log", False)
            return Int(*bounds) if wanted is int else Float(*bounds)
        check_keys(table, required=("type", "choices"))
        choices = table["choices"]
        require(isinstance(choices, list), "choices must be a list", choices)
        if wanted is float:  # 0 becomes 0.0, as in the recipe
            require(all(is_number(choice) for choice in choices), "choices must be numbers", choices)
            choices = [float(choice) for choice in choices]
        return Categorical(tuple(choices))


def read_section(document: Mapping[str, Any], key: str, kind: type[_Section]) -> _Section:
    """Build a `kind`, whose fields all have defaults, from the table `key`."""
    table = read_table(document, key, optional=kind.__annotations__)
    with within(f"{key}."):
        return kind(**table)


def _check_bounds(domain: Int | Float) -> None:
    require(type(domain.log) is bool, "log must be true or false", domain.log)
    require(domain.low <= domain.high, f"low must be at most high, {domain.high!r}", domain.low)
    require(not domain.log or domain.low > 0, "low must be above 0 when log = true", domain.low)
