"""Define the search space: which fields of a recipe are searched, in which bounds, and what the search may spend.

Knows neither Optuna's distributions nor Ray's resources: the adapters translate these values into them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

from pydantic import BeforeValidator, Field, SkipValidation

from study.config.recipe import AUTO, Recipe, unused_fields
from study.config.validation import AtLeastOne, check_value, checked, from_table, gather, one_of
from study.errors import ConfigError, unknown_name

FIELDS: Mapping[str, Any] = {name: kind for name, kind in get_type_hints(Recipe).items() if name != "fit"}
"""Type of each recipe field that can be searched: all but the fit, in which a study's images are stored once for all
trials."""
_RULES: Mapping[str, Any] = get_type_hints(Recipe, include_extras=True)
"""The same types with the rules of their values."""


@checked
class Int:
    """Whole numbers from `low` to `high`, both included; `log` samples on a logarithmic scale."""

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        """Check the order of the bounds."""
        _check_bounds(self)

    def __contains__(self, value: object) -> bool:
        """Tell whether the domain holds `value`."""
        return type(value) is int and self.low <= value <= self.high


@checked
class Float:
    """Real numbers from `low` to `high`, both included; `log` samples on a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        """Check the order of the bounds."""
        _check_bounds(self)

    def __contains__(self, value: object) -> bool:
        """Tell whether the domain holds `value`."""
        return type(value) is float and self.low <= value <= self.high


@checked
class Categorical:
    """A few values without order."""

    choices: Annotated[tuple[SkipValidation[str | int | float], ...], Field(min_length=1, strict=False)]

    def __post_init__(self) -> None:
        """Check that the choices are values of a recipe, and differ from each other."""
        for choice in self.choices:
            if type(choice) not in (str, int, float):  # pydantic would report a mistake for each type of the union
                raise ConfigError(f"choices: must be strings or numbers, but got {choice!r}.")
            if self.choices.count(choice) > 1:
                raise ConfigError(f"choices: must differ from each other, but got {choice!r} twice.")

    def __contains__(self, value: object) -> bool:
        """Tell whether the domain holds `value`."""
        return value in self.choices


Domain = Int | Float | Categorical
DOMAINS: Mapping[str, type[Domain]] = {"int": Int, "float": Float, "categorical": Categorical}
"""Domains by their names in a search space's file."""


def read_value(field: str, value: object) -> Any:
    """Return the value of a recipe's field with its type.

    Raises:
        ConfigError: the field is unknown, or the value breaks its rule.
    """
    if field not in FIELDS:
        raise ConfigError(unknown_name("key", field, FIELDS))
    return check_value(_RULES[field], value)


def _read_domain(field: str, given: object) -> Domain:
    """Make the domain of a field from its table in a file, and check it by the field's rule.

    A rule is a range, so the ends of a domain suffice. Whole numbers become floats where the field is one.
    """
    if field not in FIELDS:
        raise ConfigError(unknown_name("key", field, FIELDS))
    domain = given if isinstance(given, Domain) else _make_domain(FIELDS[field], given)
    if not isinstance(domain, Categorical):
        gather({key: partial(read_value, field, getattr(domain, key)) for key in ("low", "high")})
        return domain
    choices = gather({f"choices.{at}": partial(read_value, field, value) for at, value in enumerate(domain.choices)})
    return Categorical(tuple(choices.values()))


def _make_domain(kind: type, table: object) -> Domain:
    """Make a domain of a field of type `kind`."""
    if not isinstance(table, dict):
        raise ConfigError(f"must be a table, but got {table!r}.")
    names = [name for name in DOMAINS if name in (kind.__name__, "categorical")]
    if table.get("type") not in names:
        raise ConfigError(f"type: must be {' or '.join(map(repr, names))}, but got {table.get('type')!r}.")
    return DOMAINS[table["type"]](**{key: value for key, value in table.items() if key != "type"})


def _read_domains(given: object) -> object:
    """Make the domains of a table; anything else is left for pydantic to refuse."""
    if not isinstance(given, Mapping):
        return given
    return gather({field: partial(_read_domain, field, domain) for field, domain in given.items()})


Domains = Annotated[Mapping[str, Domain], BeforeValidator(_read_domains), Field(min_length=1)]
"""Domain of each searched recipe field; at least one field."""


@checked
class Budget:
    """Limits of a search, which ends as soon as one limit is reached."""

    trials: AtLeastOne = 20
    """Number of trials, at least 1, including the baseline's own trial."""
    time_s: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock time in seconds, above 0; None for no limit."""


@checked
class Pruner:
    """Rule that stops weak trials early: asha is asynchronous successive halving (arXiv:1810.05934)."""

    name: Annotated[str, one_of("choice", ("asha", "none"))] = "asha"
    """Method: asha, or none to let every trial finish."""
    min_epochs: AtLeastOne = 1
    """Number of epochs that every trial trains, at least 1."""
    reduction_factor: Annotated[int, Field(ge=2)] = 2
    """Factor f, at least 2: after min_epochs · 1, f, f² … epochs, about one trial in f continues."""


@checked
class Resources:
    """Resources that the file requests; None to choose by the machine."""

    cpus_per_trial: Annotated[float, Field(gt=0)] | None = None
    """CPU cores per trial, above 0."""
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = None
    """GPUs per trial, at least 0; a fraction lets trials share a GPU."""
    concurrent: AtLeastOne | None = None
    """Maximum number of trials at a time, at least 1."""


@checked
class SearchSpace:
    """Recipes that a search may try, with its budget, pruner and resources."""

    name: str
    """Name of the file, without .toml."""
    file: Annotated[Path, Field(strict=False)]
    """Absolute path of the file."""
    domains: Domains
    """Domain of each searched recipe field; at least one field."""
    base: Annotated[Recipe, from_table(Recipe)]
    """Recipe that holds the values of all other fields: the baseline's recipe, overridden by [fixed]. If models are
    searched, its model is the first of them."""
    budget: Annotated[Budget, from_table(Budget)]
    pruner: Annotated[Pruner, from_table(Pruner)]
    resources: Annotated[Resources, from_table(Resources)]
    own_sizes: bool = False
    """Whether each model that is searched sees images of its own size, instead of the base's."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models that the search may choose from; one, unless the field `model` is searched."""
        domain = self.domains.get("model")
        return tuple(map(str, domain.choices)) if isinstance(domain, Categorical) else (self.base.model,)

    def with_models(self, models: Sequence[str]) -> Self:
        """Return the space with fewer models to choose from."""
        return dataclasses.replace(self, domains={**self.domains, "model": Categorical(tuple(models))})

    def contains(self, recipe: Recipe) -> bool:
        """Tell whether `recipe` is in the space: searched fields in their domains, all other fields as in the base."""
        values = {field: getattr(recipe, field) for field in self.domains}
        return recipe == self.recipe(values) and all(values[field] in self.domains[field] for field in values)

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the base recipe with `values` for searched fields; those that do nothing in it stay as in the base."""
        own = {"image_size": AUTO} if self.own_sizes and "model" in values else {}
        return dataclasses.replace(self.base, **{**own, **self.used(values)})

    def used(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the values that do something in a recipe of the space; all others make it no other one."""
        unused = unused_fields(values.get("optimizer") or self.base.optimizer)
        return {field: value for field, value in values.items() if field not in unused}

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON values; `from_dict` is the inverse."""
        domains = {}
        for field, domain in self.domains.items():
            kept = {"choices": [*domain.choices]} if isinstance(domain, Categorical) else dataclasses.asdict(domain)
            domains[field] = {"type": type(domain).__name__.lower(), **kept}
        sections = {key: dataclasses.asdict(getattr(self, key)) for key in ("budget", "pruner", "resources")}
        return {"name": self.name, "file": str(self.file), "space": domains, "base": self.base.to_dict(), **sections,
                "own_sizes": self.own_sizes}  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a space from the values that `to_dict` returned.

        Raises:
            ConfigError: the values do not form a valid space.
        """
        return cls(**{"domains" if key == "space" else key: value for key, value in values.items()})


def _check_bounds(domain: Int | Float) -> None:
    if domain.low > domain.high:
        raise ConfigError(f"low: must be at most high, {domain.high!r}, but got {domain.low!r}.")
    if domain.log and domain.low <= 0:
        raise ConfigError(f"low: must be above 0 when log = true, but got {domain.low!r}.")
