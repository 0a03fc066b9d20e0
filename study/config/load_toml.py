"""Load `search_spaces/*.toml`: the assignment's baseline and the search spaces.

Every mistake in a file is reported with file, key, rule and value before anything slow starts.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from study.config.catalogue import TIMM, catalogue
from study.config.paths import absolute, search_spaces_directory
from study.config.recipe import AUTO, Model, Recipe
from study.config.search_space import FIELDS, Budget, Domains, Pruner, Resources, SearchSpace, read_value
from study.config.validation import AtLeastOne, Count, Fraction, Name, checked, from_table, gather, within
from study.errors import ConfigError, unknown_name

BACKBONES = "backbones"
"""Shipped search space whose models are probed unless others are named."""
BASELINE, PORTFOLIO = "baseline.toml", "portfolio.toml"
NO_SPACES = (BASELINE, PORTFOLIO)
"""Shipped files that hold no search space."""


def _seconds(text: object) -> float:
    pattern = r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?"
    parts = re.fullmatch(pattern, text, re.ASCII) if isinstance(text, str) else None
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total == 0:
        raise ConfigError(f"must be a duration such as '90s', '30m', '2h' or '1h30m', but got {text!r}.")
    return float(total)


def _read_fixed(table: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Check the table [fixed], whose fields must not be searched too."""
    searched = info.data.get("space", {})

    def read(field: str, value: object) -> Any:
        if field == "model":
            raise ConfigError(f"must be a key above the tables, or searched in [space], but got {value!r}.")
        if field in searched:
            raise ConfigError(f"must not be in [space] too, but got {value!r}.")
        return read_value(field, value)

    return gather({field: partial(read, field, value) for field, value in table.items()})


def _read_values(table: dict[str, Any]) -> dict[str, Any]:
    return gather({field: partial(read_value, field, value) for field, value in table.items()})


def _read_recipe(table: dict[str, Any]) -> dict[str, Any]:
    """Check the baseline's table [recipe], which holds every field of a recipe but the model."""
    fields = FIELDS.keys() - {"model"}
    if "model" in table:
        raise ConfigError(f"model: {unknown_name('key', 'model', fields)}")
    recipe = Recipe(model="vgg16", **table)
    return {field: getattr(recipe, field) for field in FIELDS if field in fields}


Duration = Annotated[float, BeforeValidator(_seconds)]
"""Seconds above 0, written as 90s, 30m, 2h or 1h30m."""


@checked
class BudgetTable:
    """The table [budget]."""

    trials: AtLeastOne = Budget().trials
    time: Duration | None = None


@checked
class _SpaceFile:
    """The file of a search space."""

    model: Model
    space: Domains
    fixed: Annotated[dict[str, Any], AfterValidator(_read_fixed)] = field(default_factory=dict)
    budget: Annotated[BudgetTable, from_table(BudgetTable)] = BudgetTable()
    pruner: Annotated[Pruner, from_table(Pruner)] = Pruner()
    resources: Annotated[Resources, from_table(Resources)] = Resources()


@checked
class _BaselineData:
    """The baseline's table [data]."""

    cifar10_fraction: Fraction
    seed: Count


@checked
class _BaselineFile:
    """The baseline's file."""

    models: Annotated[list[Model], Field(min_length=1)]
    data: Annotated[_BaselineData, from_table(_BaselineData)]
    recipe: Annotated[dict[str, Any], AfterValidator(_read_recipe)]


@checked
class _Known:
    """A recipe of the portfolio: its source, and the values of some fields."""

    source: Name
    values: Annotated[dict[str, Any], AfterValidator(_read_values)]


@checked
class _PortfolioFile:
    """The file of recipes that are known to work."""

    recipe: list[Annotated[_Known, from_table(_Known)]]


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
        ConfigError: the shipped file was edited and now breaks rules. The message lists every mistake.
    """
    file = search_spaces_directory() / BASELINE
    with within(f"{file}: "):
        read = _BaselineFile(**_read(file))
    return Baseline(tuple(read.models), read.data.cifar10_fraction, read.data.seed, read.recipe)


def baseline_recipe(model: str) -> Recipe:
    """Return the assignment's recipe for `model`.

    Raises:
        ConfigError: the model is unknown, or cannot be fine-tuned.
    """
    return Recipe(model=model, **_defaults(model))


def _defaults(model: str) -> dict[str, Any]:
    """Return the assignment's values: its images are of 224 pixels; timm's models see images of their own size."""
    values = dict(load_baseline().values)
    entry = catalogue().get(model)
    if entry and (model.startswith(TIMM) or not entry.allows(values["image_size"])):
        values["image_size"] = AUTO
    return values


def load_portfolio() -> tuple[dict[str, Any], ...]:
    """Read the recipes that a search tries before the sampler's own proposals, as values of some of their fields.

    Raises:
        ConfigError: the shipped file was edited and now breaks rules. The message lists every mistake.
    """
    file = search_spaces_directory() / PORTFOLIO
    with within(f"{file}: "):
        return tuple(known.values for known in _PortfolioFile(**_read(file)).recipe)


def load_space(name: str) -> SearchSpace:
    """Read and check a search space.

    Args:
        name: name of a shipped space, such as vgg16, or path of a TOML file.

    Raises:
        ConfigError: the space does not exist or breaks rules. The message lists each with file, key and rule.
    """
    shipped = _shipped_spaces()
    file = shipped.get(name, absolute(name))
    if not name:
        raise ConfigError("--search: must not be empty.")
    if not file.exists():
        raise ConfigError(f"{name}: no such file; {unknown_name('shipped search space', file.stem, shipped)}")
    if not file.is_file():
        raise ConfigError(f"{name}: must be a TOML file, but is {'a directory' if file.is_dir() else 'a device'}.")
    with within(f"{file if name in shipped else name}: "):
        read = _SpaceFile(**_with_model(_read(file)))
        base = Recipe(model=read.model, **{**_defaults(read.model), **read.fixed})
        budget = Budget(read.budget.trials, read.budget.time)
        own = "model" in read.space and "image_size" not in read.space and read.fixed.get("image_size", AUTO) == AUTO
        space = SearchSpace(file.stem, file, read.space, base, budget, read.pruner, read.resources, own)
        gather({model: partial(space.recipe, {"model": model}) for model in space.models if "model" in space.domains})
        return space


def set_by_user(name: str) -> frozenset[str]:
    """Return the fields of the recipe, and "trials" and "time", that a checked space's own file fixes.

    A shipped space has none: the user has set nothing there.
    """
    if name in _shipped_spaces():
        return frozenset()
    table = _read(absolute(name))
    return frozenset({*table.get("fixed", {}), *table.get("budget", {})})


def _shipped_spaces() -> dict[str, Path]:
    return {file.stem: file for file in search_spaces_directory().glob("*.toml") if file.name not in NO_SPACES}


def _with_model(table: dict[str, Any]) -> dict[str, Any]:
    """Return the table of a space's file with a model, the first of those that it searches."""
    space = table.get("space")
    searched = space.get("model") if isinstance(space, dict) else None
    if searched is None:
        return table
    if "model" in table:
        raise ConfigError(f"model: must be left out, since [space] searches it, but got {table['model']!r}.")
    choices = searched.get("choices") if isinstance(searched, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else load_baseline().models[0]
    return {"model": first, **table}  # a mistake in `searched` is reported when it is read


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(f"must be readable, but got: {error.strerror}.") from None
    except ValueError as error:  # wrong syntax (the message has line and column) or wrong encoding
        raise ConfigError(f"must be TOML, but got: {error}.") from None
