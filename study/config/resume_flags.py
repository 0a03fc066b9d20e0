"""Restore the settings of a study from its manifest, and refuse flags that contradict the manifest.

Knows no torch, Ray, Optuna or MLflow.
"""

from argparse import Namespace
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from study.config.catalogue import own_size
from study.config.manifest import Manifest
from study.config.plan import StudyConfig
from study.config.recipe import AUTO
from study.config.search_space import SearchSpace
from study.errors import ConfigError


def recorded_config(options: Namespace, manifest: Manifest, config: StudyConfig) -> StudyConfig:
    """Return `config` with the recorded settings; flags may name other resources, files and stores."""
    return replace(
        config.with_resources(manifest.resources),
        data=config.data if options.data else manifest.source,
        data_dir=config.data_dir if options.data_dir else Path(manifest.data_dir),
        fraction=manifest.fraction,
        weights=config.weights if options.weights else manifest.weights,
        seed=manifest.seed,
        precision=manifest.precision,
        tracking_uri=options.tracking_uri or manifest.tracking_uri,
        test_fraction=manifest.found.test_fraction,
        skip_broken=manifest.found.skip_broken,
        leaks=manifest.found.leaks,
    )


def check_flags(options: Namespace, manifest: Manifest, given: Mapping[str, Any]) -> None:
    """Check that the flags agree with the study's manifest; budget, machines, tracking and places may change.

    A folder of images and a file of weights may have moved: their contents are compared when they are read.

    Args:
        options: parsed flags; None for each flag that was not given.
        manifest: manifest of the study.
        given: resolved values of the flags for data and weights, by option name.

    Raises:
        ConfigError: a flag contradicts the manifest. The message names both values.
    """
    recipe = manifest.design.recipes[0]
    recorded = {
        "data": manifest.source,
        "fraction": manifest.fraction,
        "weights": manifest.weights,
        "seed": manifest.seed,
        "precision": manifest.precision,
        "epochs": recipe.epochs,
        "image_size": recipe.image_size,
        "fit": recipe.fit,
        "test_fraction": manifest.found.test_fraction,
        "skip_broken": manifest.found.skip_broken,
        "leaks": manifest.found.leaks,
        "metric": manifest.design.metric,
        "repeats": manifest.design.repeats,
        "rerank": manifest.design.rerank,
        "prior": [*manifest.design.prior],
        "pruner": manifest.design.space and manifest.design.space.pruner.name,
    }
    for option, value in recorded.items():
        now = given.get(option, getattr(options, option))
        if now == AUTO and option == "image_size":
            now = own_size(recipe.model)
        moved = Path(str(value)).is_absolute() and Path(str(now)).is_absolute()
        if now is not None and not moved:
            _check_same(f"--{option.replace('_', '-')}", value, now)
    stage = manifest.design.stage
    if options.as_written:
        _check_same("--as-written", stage, "as-written")
    elif options.baseline is not None and stage != "as-written":
        _check_same("--baseline", stage, "baseline")
    if options.probe is not None:
        _check_same("--probe", stage, "probe")
    for flag, given_models in (("--baseline", options.baseline), ("--probe", options.probe)):
        if given_models:
            _check_same(flag, " ".join(manifest.design.models), " ".join(dict.fromkeys(given_models)))


def check_places(data: str, weights: str) -> None:
    """Check that the images and the weights of a study are where they were.

    Args:
        data: name or place of the images.
        weights: name or place of the weights.

    Raises:
        ConfigError: a folder or a file is missing.
    """
    for flag, what, place in (("--data", "images", data), ("--weights", "weights", weights)):
        if Path(place).is_absolute() and not Path(place).exists():
            raise ConfigError(f"{place}: must hold the study's {what}, but is missing. If moved, add {flag} NEW-PLACE.")


def check_space(space: SearchSpace, manifest: Manifest, given: Collection[str]) -> None:
    """Check that `space` is the space that the study searches; its budget and resources may differ.

    Args:
        space: space that was given again.
        manifest: manifest of the study.
        given: fields of the base recipe that the space's file or flags set now; the others stay as recorded.

    Raises:
        ConfigError: `space` differs from the recorded space. The message names both values.
    """
    if manifest.design.space is None:
        raise ConfigError(f"--search: must be left out, since the study has fixed trials, but got {space.name}.")
    then, now = manifest.design.space.to_dict(), space.to_dict()
    _check_same("--search", then["name"], now["name"])
    for part in ("base", "pruner", "space"):
        keys = dict.fromkeys([*then[part], *now[part]] if part != "base" else given)
        for key in keys:
            _check_same(f"--search {space.name}: {part}.{key}", then[part].get(key), now[part].get(key))


def _check_same(place: str, then: object, now: object) -> None:
    if then != now:
        raise ConfigError(
            f"{place}: must stay {then!r}, as recorded, but got {now!r}. Leave it out, or begin a new study."
        )
