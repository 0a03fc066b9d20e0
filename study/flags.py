"""The flags of `python -m study.run`, and the configurations that they stand for.

Knows no torch, Ray, Optuna or MLflow, and starts nothing.
"""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from study.config import StudyConfig
from study.errors import ConfigError, unknown_name
from study.search_space import Budget, SearchSpace, load_baseline, load_space, parse_duration

SOURCES = ("cifar10", "digits")
"""Data sets by name; anything else is a folder."""
WEIGHTS = ("imagenet", "none")
"""By name; anything else is a file."""
DEMO = {"data": "digits", "weights": "none", "image_size": 64}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m study.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.run",
        description="Studies of transfer learning: fixed trials of a recipe, or a search that ends in a verdict.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--baseline",
        nargs="*",
        metavar="MODEL",
        help="run the assignment's recipe as fixed trials; default: vgg16 resnet18",
    )
    what.add_argument(
        "--search",
        nargs="+",
        metavar="SPACE",
        help="search a space, a shipped one (search_spaces/) or a file.toml, and judge its best recipe",
    )
    what.add_argument("--models", action="store_true", help="list all models with their blocks and parameters")
    what.add_argument(
        "--reproduce", metavar="NAME|latest", help="train a search's kept model again, and say whether it is the same"
    )
    parser.add_argument(
        "--resume", metavar="NAME|latest", help="go on with a study that was interrupted, or rebuild its MLflow runs"
    )
    images = parser.add_argument_group("images and weights")
    images.add_argument("--data", metavar="cifar10|digits|FOLDER", help="images (default: cifar10, 10 %% of it)")
    images.add_argument("--data-dir", type=Path, metavar="DIR", help="where downloads are kept (default: user's cache)")
    images.add_argument("--fraction", type=float, metavar="F", help="share of the images used, in (0, 1]")
    images.add_argument("--weights", metavar="imagenet|none|FILE", help="what models start from (default: imagenet)")
    images.add_argument("--demo", action="store_true", help="= --data digits --weights none --image-size 64")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--epochs", type=int, metavar="N", help="training epochs")
    recipe.add_argument("--image-size", type=int, metavar="PX", help="side of the image that the network sees")
    recipe.add_argument("--seed", type=int, metavar="N", help="of everything random")
    recipe.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        help="default: auto, which is bf16 where the hardware computes in it; a CPU that only emulates it is slow",
    )
    recipe.add_argument(
        "--as-written",
        action="store_true",
        help="with --baseline: run the assignment's own solution, mistakes included, to compare",
    )
    search = parser.add_argument_group("with --search, instead of what the space's file says")
    search.add_argument("--trials", type=int, metavar="N", help="trials at most, the baseline's recipe among them")
    search.add_argument("--time-budget", metavar="30m", help="wall clock at most; the verdict comes on top")
    search.add_argument("--pruner", metavar="asha|none", help="whether hopeless trials are stopped early")
    search.add_argument("--repeats", type=int, metavar="N", help="seeds of the verdict (default: 3)")
    machines = parser.add_argument_group("machines and records")
    machines.add_argument("--name", help="of the study (default: its kind and the time)")
    machines.add_argument("--tracking-uri", metavar="URI", help="MLflow's store (default: mlruns/mlflow.db)")
    machines.add_argument("--ray-address", metavar="ADDR", help="join an existing Ray cluster; 'auto' finds it")
    machines.add_argument("--cpus-per-trial", type=float, metavar="N", help="default: all cores without a GPU")
    machines.add_argument("--gpus-per-trial", type=float, metavar="F", help="default: 1 where there is a GPU, else 0")
    machines.add_argument("--concurrent", type=int, metavar="N", help="trials at a time (default: as many as fit)")
    cache = machines.add_mutually_exclusive_group()
    cache.add_argument("--cache-gb", type=float, metavar="N", help="bound on what a search's trials share on disk")
    cache.add_argument("--no-cache", action="store_const", const=0.0, dest="cache_gb", help="= --cache-gb 0")
    machines.add_argument("--verbose", action="store_true", help="let Ray, Optuna and MLflow speak")
    return parser


def fill_in(options: argparse.Namespace) -> None:
    """Let --demo stand for the flags that it abbreviates, and refuse flags that mean nothing beside the command.

    Raises:
        ConfigError: a flag does not go with the command.
    """
    for command in ("models", "reproduce"):
        if getattr(options, command) and (others := [flag for flag in _given(options) if flag != command]):
            raise ConfigError(f"--{command}: takes no other flags, but got {', '.join(map(_spell, others))}.")
    if options.resume and options.name:
        raise ConfigError(f"--name: must be left out beside --resume, which names the study, but got {options.name!r}.")
    commands = (options.models, options.reproduce, options.resume, options.search, options.baseline is not None)
    if not any(commands):
        raise ConfigError("one of --baseline, --search, --resume, --reproduce and --models must be given.")
    searching, fixed = ("trials", "time_budget", "pruner", "repeats"), ("as_written",)
    foreign = fixed if options.search else searching if options.baseline is not None else ()
    for flag in _given(options):
        if flag in foreign:
            raise ConfigError(f"{_spell(flag)}: goes with {'--baseline' if options.search else '--search'} only.")
    if options.as_written and options.precision == "bf16":
        raise ConfigError("--precision: must be fp32 or left out beside --as-written, but got 'bf16'.")
    if options.demo:
        for key, value in DEMO.items():
            if getattr(options, key) is None:
                setattr(options, key, value)


def configure(options: argparse.Namespace, name: str) -> StudyConfig:
    """Turn flags into a checked configuration, the baseline's file filling in what they do not say.

    Raises:
        ConfigError: a flag breaks its rule.
    """
    baseline = load_baseline()
    data = options.data or "cifar10"
    fraction = options.fraction
    if fraction is None:
        fraction = baseline.fraction if data == "cifar10" else 1.0
    return StudyConfig(
        name=name,
        data=_source(data),
        data_dir=(options.data_dir or user_cache_path("study") / "data").expanduser().absolute(),
        fraction=fraction,
        weights=_weights(options.weights or "imagenet"),
        seed=baseline.seed if options.seed is None else options.seed,
        precision=options.precision or "auto",
        mlruns=Path("mlruns").absolute(),
        tracking_uri=options.tracking_uri,
        ray_address=options.ray_address,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        concurrent=options.concurrent,
        cache_gb=options.cache_gb,
        verbose=options.verbose,
    )


def recipe_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a recipe that flags set."""
    return {key: getattr(options, key) for key in ("epochs", "image_size") if getattr(options, key) is not None}


def read_space(name: str, options: argparse.Namespace) -> SearchSpace:
    """Load a space and let the flags change its base, budget and pruner.

    Raises:
        ConfigError: there is no such space, or a flag and it do not go together.
    """
    space = load_space(name)
    for field in recipe_changes(options):
        if field in space.domains:
            raise ConfigError(f"{_spell(field)}: is searched by {space.name}, so it cannot be set.")
    with _as_flag("--pruner"):
        pruner = replace(space.pruner, name=options.pruner or space.pruner.name)
    base = replace(space.base, **recipe_changes(options))
    return replace(space, base=base, budget=change_budget(options, space.budget), pruner=pruner)


def change_budget(options: argparse.Namespace, budget: Budget) -> Budget:
    """Return the budget with what flags say of it.

    Raises:
        ConfigError: a flag breaks its rule.
    """
    with _as_flag("--trials"):
        budget = replace(budget, trials=budget.trials if options.trials is None else options.trials)
    if options.time_budget is not None:
        budget = replace(budget, time_s=parse_duration(options.time_budget, place="--time-budget"))
    return budget


def with_resources(config: StudyConfig, space: SearchSpace) -> StudyConfig:
    """Let the space's file say what no flag says of the machines."""
    asked = space.resources
    return replace(
        config,
        cpus_per_trial=config.cpus_per_trial or asked.cpus_per_trial,
        gpus_per_trial=asked.gpus_per_trial if config.gpus_per_trial is None else config.gpus_per_trial,
        concurrent=config.concurrent or asked.concurrent,
    )


def _given(options: argparse.Namespace) -> list[str]:
    """Return the options that were given."""
    return [option for option, value in vars(options).items() if value is not None and value is not False]


def _spell(option: str) -> str:
    return f"--{option.replace('_', '-')}"


@contextlib.contextmanager
def _as_flag(flag: str) -> Iterator[None]:
    """Let an error name the flag that a value came from, not the key that it would have in a file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{flag}: {str(error).partition(': ')[2]}") from None


def _source(given: str) -> str:
    if given in SOURCES:
        return given
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"--data: {unknown_name('data set or folder', given, SOURCES)}")
    return str(folder)


def _weights(given: str) -> str:
    if given in WEIGHTS:
        return given
    file = Path(given).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"--weights: {unknown_name('weights or file', given, WEIGHTS)}")
    return str(file)
