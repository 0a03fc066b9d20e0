"""A study that has begun: what it was, from its manifest, and whether the flags of now would make another of it.

Knows no torch, Ray, Optuna or MLflow.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from study.config import StudyConfig
from study.design import Design
from study.errors import ConfigError
from study.search_space import SearchSpace


def recorded_config(options: Namespace, manifest: Mapping[str, Any], config: StudyConfig) -> StudyConfig:
    """Return `config` with all that makes the study what it is as the manifest has it; downloads may have moved."""
    return replace(
        config,
        data=manifest["source"],
        data_dir=config.data_dir if options.data_dir else Path(manifest["data_dir"]),
        fraction=manifest["fraction"],
        weights=manifest["weights"],
        seed=manifest["seed"],
        precision=manifest["precision"],
        tracking_uri=config.tracking_uri or manifest["tracking_uri"],
    )


def check_flags(options: Namespace, manifest: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Make sure that no flag would change what the study is; budget, machines and tracking may change.

    Args:
        options: of the command line; those that were not given are None.
        manifest: of the study.
        given: sources and weights as the command line means them, by option.

    Raises:
        ConfigError: a flag says otherwise than the manifest; names both values.
    """
    recipe = manifest["recipes"][0]
    recorded = {
        "data": manifest["source"],
        "fraction": manifest["fraction"],
        "weights": manifest["weights"],
        "seed": manifest["seed"],
        "precision": manifest["precision"],
        "epochs": recipe["epochs"],
        "image_size": recipe["image_size"],
        "repeats": manifest["repeats"],
        "pruner": manifest["space"] and manifest["space"]["pruner"]["name"],
    }
    for option, value in recorded.items():
        now = given.get(option, getattr(options, option))
        if now is not None:
            _check_same(f"--{option.replace('_', '-')}", value, now)
    stage = manifest["stage"]
    if options.as_written:
        _check_same("--as-written", stage, "as-written")
    elif options.baseline is not None and stage != "as-written":
        _check_same("--baseline", stage, "baseline")
    if options.baseline:
        models = " ".join(dict.fromkeys(options.baseline))
        _check_same("--baseline", " ".join(Design.from_dict(manifest).models), models)


def check_space(space: SearchSpace, manifest: Mapping[str, Any]) -> None:
    """Make sure that a space is the one that the study searches; its budget and resources may differ.

    Raises:
        ConfigError: it is another; names both.
    """
    then = manifest["space"]
    if then is None:
        raise ConfigError(f"--search: must be left out, since the study is no search, but got {space.name}.")
    now = space.to_dict()
    _check_same("--search", then["name"], now["name"])
    for part in ("base", "pruner", "space"):
        keys = dict.fromkeys([*then[part], *now[part]])
        for key in keys:
            _check_same(f"--search {space.name}: {part}.{key}", then[part].get(key), now[part].get(key))


def _check_same(place: str, then: object, now: object) -> None:
    if then != now:
        raise ConfigError(
            f"{place}: must stay {then!r}, as the study began, but got {now!r}. Leave it out, or begin a new study."
        )
