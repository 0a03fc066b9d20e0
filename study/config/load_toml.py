"""Load `search_spaces/*.toml`: the assignment's baseline and the search spaces.

Every mistake in a file is reported with file, key, rule and value before anything slow starts.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.config.architectures import ARCHITECTURES
from study.config.paths import absolute, search_spaces_directory
from study.config.recipe import Recipe
from study.config.search_space import FIELDS, Budget, Pruner, Resources, SearchSpace, read_domain, read_section
from study.config.validation import Mistakes, check_keys, check_whole, is_number, read_table, require, within
from study.errors import ConfigError, unknown_name


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
    with within(f"{file}: "):
        document = _read(file)
        check_keys(document, required=("models", "data", "recipe"))
        models = document["models"]
        known = isinstance(models, list) and len(models) > 0 and all(model in [*ARCHITECTURES] for model in models)
        require(known, "models: must be a list of known models", models)
        data = read_table(document, "data", required=("cifar10_fraction", "seed"))
        fraction, seed = data["cifar10_fraction"], data["seed"]
        with within("data."):
            require(is_number(fraction) and 0 < fraction <= 1, "cifar10_fraction: must be in (0, 1]", fraction)
            check_whole("seed", seed, at_least=0)
        values = read_table(document, "recipe", required=FIELDS)
        with within("recipe."):
            Recipe(model=models[0], **values)
    return Baseline(tuple(models), fraction, seed, values)


def baseline_recipe(model: str) -> Recipe:
    """Return the assignment's recipe for `model`.

    Raises:
        ConfigError: `model` is no key of ARCHITECTURES.
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
    file = shipped.get(name, absolute(name))
    if not file.is_file():
        raise ConfigError(f"{name}: no such file; {unknown_name('shipped search space', file.stem, shipped)}")
    with within(f"{file if name in shipped else name}: "):
        return _read_space(_read(file), file)


def _read_space(document: dict[str, Any], file: Path) -> SearchSpace:
    """Build the space of a document, and report all its mistakes at once."""
    mistakes = Mistakes()
    base, domains = baseline_recipe(load_baseline().models[0]), {}
    space: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    with mistakes.collected():
        check_keys(document, required=("model", "space"), optional=("fixed", "budget", "pruner", "resources"))
    with mistakes.collected():
        base = dataclasses.replace(base, model=document.get("model", base.model))
    with mistakes.collected():
        space = read_table(document, "space", optional=FIELDS)
    with mistakes.collected():
        fixed = read_table(document, "fixed", optional=FIELDS)
    for field in fixed.keys() & space.keys():
        with mistakes.collected():
            require(False, f"fixed.{field}: must not be in [space] too", fixed[field])
    with mistakes.collected(), within("fixed."):
        base = dataclasses.replace(base, **fixed)
    for field in space:
        with mistakes.collected(), within("space."):
            domains[field] = read_domain(space, field)
    budget, pruner, resources = Budget(), Pruner(), Resources()
    with mistakes.collected():
        limits = read_table(document, "budget", optional=("trials", "time"))
        if "time" in limits:
            with mistakes.collected():
                limits["time_s"] = parse_duration(limits["time"], place="budget.time")
            del limits["time"]
        budget = read_section({"budget": limits}, "budget", Budget)
    with mistakes.collected():
        pruner = read_section(document, "pruner", Pruner)
    with mistakes.collected():
        resources = read_section(document, "resources", Resources)
    if domains or not space:
        with mistakes.collected():
            found = SearchSpace(file.stem, file, domains, base, budget, pruner, resources)
    mistakes.report()
    return found


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
    require(total > 0, f"{place}: must be a duration such as '90s', '30m', '2h' or '1h30m'", text)
    return float(total)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"must be readable, but got: {error.strerror}.") from None
    except ValueError as error:  # wrong syntax (the message has line and column) or wrong encoding
        raise ConfigError(f"must be TOML, but got: {error}.") from None
