"""Define the flags of `python -m study.run`, and turn parsed flags into checked settings.

Knows no torch, Ray, Optuna or MLflow, and starts nothing.
"""

import argparse
import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from study.command_line import Parser
from study.config.catalogue import catalogue
from study.config.load_toml import BudgetTable, load_baseline, load_space, set_by_user
from study.config.paths import absolute, cache_directory, list_journals
from study.config.plan import AUTO_PRIOR, METRICS, NO_PRIOR, Repeats, StudyConfig
from study.config.recipe import AUTO, FITS, Recipe
from study.config.search_space import Budget, SearchSpace
from study.config.validation import gather
from study.environment import TRACKING_URI
from study.errors import ConfigError, unknown_name

SOURCES = ("cifar10", "digits")
"""Data sets known by name; any other --data is a folder or a CSV file."""
TABLES = (".csv", ".tsv")
"""Endings of the files that list images."""
WEIGHTS = ("imagenet", "none")
"""Weights known by name; any other --weights is a file or a directory."""
DEMO = {"data": "digits", "weights": "none"}
"""Values that --demo gives to flags, unless they are given."""
DEMO_MODELS = ["resnet18"]
"""Models of a baseline with --demo. Untrained, VGG16 learns nothing by the assignment's recipe."""
DEMO_TRIALS = 9
"""Trials of a search with --demo: too few for a re-ranking, whose six refits would double the time."""
DEMO_EPOCHS = 3
"""Epochs of a search with --demo: the refits of the verdict take most of its time."""
DEMO_RECIPE = {"image_size": 32, "augmentation": "none"}
"""Fields of the recipe that --demo sets: the size of the digits, and no mirrored digits, which are no digits."""


DEFAULT_PRIOR = AUTO_PRIOR
"""Value of --prior, unless it is given: docs/sampler-and-pruner.md says why."""


COMMANDS = ("baseline", "search", "probe", "resume", "reproduce", "models")
"""Flags of which one says what to do."""
PLACES = {"data": "source", "data_dir": "data_dir", "weights": "weights"}
"""Flags for places that may have moved since a study began, and the names under which a study keeps them."""
NEEDS = {
    **dict.fromkeys(("trials", "time_budget", "pruner", "repeats", "rerank", "prior"), ("search",)),
    "metric": ("search", "probe"),
    "epochs": ("baseline", "search"),
    "as_written": ("baseline",),
}
"""Commands of which a flag needs one; those that --resume cannot change are refused there."""


def build_parser() -> Parser:
    """Build the parser of `python -m study.run`."""
    parser = Parser(
        prog="python -m study.run",
        description="Run a transfer learning study: train models with a fixed recipe, or search for a better recipe.",
    )
    for add in (_add_commands, _add_images, _add_recipe, _add_search, _add_machines):
        add(parser)
    return parser


def _add_commands(parser: Parser) -> None:
    """Add the flags that say what to run."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--baseline",
        nargs="*",
        metavar="MODEL",
        help="train each MODEL with the assignment's recipe (default: vgg16 resnet18)",
    )
    what.add_argument(
        "--search",
        nargs="+",
        metavar="SPACE",
        help="search for a better recipe, then compare the best one with the baseline on the test images (the verdict);"
        " SPACE is the name of a shipped search space, such as resnet18, or the path of a TOML file",
    )
    what.add_argument(
        "--probe",
        nargs="*",
        metavar="MODEL",
        help="rank pretrained models by a linear probe of their features on validation images, without fine-tuning"
        " (default: the models of the shipped search space backbones)",
    )
    what.add_argument(
        "--models",
        nargs="?",
        const="",
        metavar="PATTERN",
        help="list the models whose names match PATTERN, such as 'timm/vit_small*' or resnet; without it, all families",
    )
    what.add_argument(
        "--reproduce", metavar="NAME|latest", help="retrain the model that a search saved, and compare the test results"
    )
    parser.add_argument(
        "--resume", metavar="NAME|latest", help="continue an interrupted study, or rebuild a study's MLflow runs"
    )


def _add_images(parser: Parser) -> None:
    """Add the flags of images and weights."""
    images = parser.add_argument_group("images and weights")
    images.add_argument(
        "--data",
        metavar="cifar10|digits|FOLDER|FILE.csv",
        help="data set; FOLDER holds train/CLASS/*, or CLASS/* alone, and may hold test/ and val/; FILE.csv has the"
        " columns path and label, and may have split and group (default: cifar10)",
    )
    images.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="directory for downloaded images (default: in the user's cache)"
    )
    images.add_argument(
        "--fraction",
        type=float,
        metavar="F",
        help="fraction of the images, in (0, 1] (default: 0.1 of cifar10, else 1)",
    )
    images.add_argument(
        "--test-fraction",
        type=float,
        metavar="F",
        help="fraction of each class to hold out as test images, if the data set has none (default: 0.2)",
    )
    images.add_argument(
        "--skip-broken",
        action="store_const",
        const=True,
        help="leave out image files that cannot be read, instead of ending",
    )
    images.add_argument(
        "--leaks",
        choices=("keep", "drop"),
        help="keep or drop training images that have a copy among the test images (default: keep, with a warning)",
    )
    images.add_argument(
        "--weights",
        metavar="imagenet|none|FILE|DIR",
        help="initial weights; imagenet is the library's own, none is random, FILE is a state dict, .pth or"
        " .safetensors, DIR holds a file NAME.pth or NAME.safetensors for each model (default: imagenet)",
    )
    images.add_argument(
        "--demo",
        action="store_true",
        help="minutes without a network: --data digits --weights none --image-size 32, no augmentation, resnet18 as"
        " baseline, 9 trials of 3 epochs in a search",
    )


def _add_recipe(parser: Parser) -> None:
    """Add the flags that change every recipe."""
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument(
        "--epochs", type=int, metavar="N", help="training epochs (default: 5, or as in the search space)"
    )
    recipe.add_argument(
        "--image-size",
        type=image_size,
        metavar="auto|PX",
        help="side of the input image; auto is the side that the model's weights were made for (default: 224 for"
        " torchvision's models, auto for timm's, or as in the search space)",
    )
    recipe.add_argument(
        "--fit",
        choices=FITS,
        help="what happens to images that are not square: crop the centre, pad with black, or squash (default: crop)",
    )
    recipe.add_argument("--seed", type=int, metavar="N", help="seed of all random numbers (default: 0)")
    recipe.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        help="precision of the arithmetic (default: auto, which is bf16 if the hardware supports it, else fp32);"
        " a CPU that only emulates bf16 is slow",
    )
    recipe.add_argument(
        "--as-written",
        action="store_true",
        help="with --baseline: run the assignment's original solution with its mistakes, for comparison",
    )


def _add_search(parser: Parser) -> None:
    """Add the flags that override a search space's file."""
    search = parser.add_argument_group("search (these flags override the search space's file)")
    search.add_argument("--trials", type=int, metavar="N", help="maximum number of trials, including the baseline")
    search.add_argument("--time-budget", metavar="30m", help="maximum wall-clock time; the verdict takes extra time")
    search.add_argument("--pruner", metavar="asha|none", help="asha stops weak trials early, none stops no trial")
    search.add_argument(
        "--metric",
        choices=METRICS,
        help="metric that decides the search, the verdict and the champion (default: accuracy)",
    )
    search.add_argument(
        "--repeats",
        type=repeats,
        metavar="auto|N",
        help="seeds per recipe in the verdict; auto is 2, and up to 6 while the answer is not clear (default: auto)",
    )
    search.add_argument(
        "--rerank",
        type=int,
        metavar="N",
        help="best trials to refit on more seeds and validation images before the verdict; 0 for none"
        " (default: 3 if there are 10 trials or more, else 0)",
    )
    search.add_argument(
        "--prior",
        nargs="+",
        metavar="auto|none|NAME",
        help="earlier studies whose best recipes are tried first, at most a third of the trials: those of the same"
        " fields, metric and model, none, or the studies NAME (default: auto)",
    )


def _add_machines(parser: Parser) -> None:
    """Add the flags of machines, stores and records."""
    machines = parser.add_argument_group("machines and records")
    machines.add_argument("--name", help="name of the study (default: baseline or SPACE, and the start time)")
    machines.add_argument("--tracking-uri", metavar="URI", help="MLflow tracking store (default: mlruns/mlflow.db)")
    machines.add_argument(
        "--ray-address", metavar="ADDR", help="Ray cluster to join, or auto to find one (default: start a local Ray)"
    )
    machines.add_argument(
        "--cpus-per-trial",
        type=float,
        metavar="N",
        help="CPU cores per trial (default: all, or a part of them in a search of small networks)",
    )
    machines.add_argument(
        "--gpus-per-trial",
        type=float,
        metavar="F",
        help="GPUs per trial; a fraction lets trials share a GPU (default: 1 or a part if there is a GPU, else 0)",
    )
    machines.add_argument(
        "--concurrent",
        type=int,
        metavar="N",
        help="maximum number of trials at a time; with 1, a search can be repeated (default: as many as fit)",
    )
    cache = machines.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache-gb",
        type=float,
        metavar="N",
        help="maximum disk space in GB for frozen blocks' outputs, which the trials of a search share"
        " (default: a fifth of the free space, at most 50)",
    )
    cache.add_argument("--no-cache", action="store_const", const=0.0, dest="cache_gb", help="same as --cache-gb 0")
    machines.add_argument("--verbose", action="store_true", help="show the messages of Ray, Optuna and MLflow")


def repeats(text: str) -> Repeats:
    """Parse the value of --repeats; argparse turns the ValueError of another word into a usage error."""
    return "auto" if text == "auto" else int(text)


def image_size(text: str) -> int | str:
    """Parse the value of --image-size; argparse turns the ValueError of another word into a usage error."""
    return AUTO if text == AUTO else int(text)


def fill_in(options: argparse.Namespace) -> None:
    """Set the flags that --demo abbreviates, and refuse flags that the command cannot use.

    Raises:
        ConfigError: no command is given, or the command cannot use a flag.
    """
    for command, allowed in (("models", ()), ("reproduce", PLACES)):
        others = [flag for flag in _given(options) if flag not in (command, *allowed)]
        if getattr(options, command) is not None and others:
            known = f" than {', '.join(map(_spell, allowed))}" if allowed else ""
            raise ConfigError(f"--{command}: takes no other flags{known}, but got {', '.join(map(_spell, others))}.")
    if options.resume and options.name:
        raise ConfigError(f"--name: must be left out with --resume, which names the study, but got {options.name!r}.")
    given = [name for name in COMMANDS if getattr(options, name) not in (None, False)]
    if not given:
        raise ConfigError(f"one of {', '.join(map(_spell, COMMANDS))} must be given.")
    for flag in _given(options):
        needed = NEEDS.get(flag)
        if needed and not {"resume", *needed} & {*given}:
            raise ConfigError(f"{_spell(flag)}: needs {' or '.join(map(_spell, needed))}.")
    if options.as_written and options.precision == "bf16":
        raise ConfigError("--precision: must be fp32 or auto with --as-written, but got 'bf16'.")
    if options.as_written and options.fit not in (None, "crop"):
        raise ConfigError(f"--fit: must be crop with --as-written, but got {options.fit!r}.")
    if options.demo:
        _fill_in_demo(options)


def _fill_in_demo(options: argparse.Namespace) -> None:
    """Set the flags that --demo abbreviates; a resumed study keeps its models."""
    for key, value in DEMO.items():
        if getattr(options, key) is None:
            setattr(options, key, value)
    if options.baseline == [] and not options.resume:
        options.baseline = DEMO_MODELS


def configure(options: argparse.Namespace, name: str) -> StudyConfig:
    """Build a checked configuration from flags; defaults for fraction and seed come from `baseline.toml`.

    Raises:
        ConfigError: flags break their rules; the message lists all of them.
    """
    baseline = load_baseline()
    data = options.data or "cifar10"
    fraction = options.fraction
    if fraction is None:
        fraction = baseline.fraction if data == "cifar10" else 1.0
    weights = options.weights or "imagenet"
    make = partial(
        StudyConfig,
        name=name,
        data=data,
        data_dir=absolute(options.data_dir or cache_directory() / "data"),
        fraction=fraction,
        weights=weights,
        seed=baseline.seed if options.seed is None else options.seed,
        precision=options.precision or "auto",
        mlruns=Path("mlruns").absolute(),
        tracking_uri=options.tracking_uri or os.environ.get(TRACKING_URI),
        ray_address=options.ray_address,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        concurrent=options.concurrent,
        cache_gb=options.cache_gb,
        verbose=options.verbose,
        test_fraction=options.test_fraction,
        skip_broken=bool(options.skip_broken),
        leaks=options.leaks or "keep",
    )
    with _as_flags():
        parts: dict[str, Callable[[], Any]]
        parts = {"data": partial(images_of, data), "weights": partial(_weights, weights), "": make}
        made = gather(parts)
        config: StudyConfig = made[""]
    return replace(config, data=made["data"], weights=made["weights"])


def moved_places(options: argparse.Namespace) -> dict[str, str]:
    """Return the new places that flags give for what a study used, by the names under which it keeps them.

    Raises:
        ConfigError: there is nothing at a place; the message lists all of them.
    """
    readers = {"data": images_of, "data_dir": lambda place: str(absolute(place)), "weights": _weights}
    given = {flag: getattr(options, flag) for flag in PLACES if getattr(options, flag) is not None}
    with _as_flags():
        found = gather({flag: partial(readers[flag], place) for flag, place in given.items()})
    return {PLACES[flag]: place for flag, place in found.items()}


def recipe_changes(options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe fields that are set by flags."""
    return {key: getattr(options, key) for key in ("epochs", "image_size", "fit") if getattr(options, key) is not None}


def change_recipe(options: argparse.Namespace, recipe: Recipe, kept: Collection[str] = ()) -> Recipe:
    """Return `recipe` with the fields that flags set.

    Args:
        options: the flags.
        recipe: any recipe.
        kept: fields that --demo does not change.

    Raises:
        ConfigError: flags break their rules; the message lists all of them.
    """
    demo: dict[str, Any] = {**DEMO_RECIPE} if options.demo else {}
    if demo and options.search:
        demo["epochs"] = DEMO_EPOCHS
    demo = {field: value for field, value in demo.items() if field not in kept}
    if "image_size" in demo and not catalogue()[recipe.model].allows(demo["image_size"]):
        demo["image_size"] = AUTO
    if options.as_written:  # the assignment's own code always augments
        demo["augmentation"] = recipe.augmentation
    with _as_flags():
        return replace(recipe, **{**demo, **recipe_changes(options)})


def read_space(name: str, options: argparse.Namespace) -> SearchSpace:
    """Load a search space, and apply the flags to its base recipe, budget and pruner.

    --demo changes what a shipped space sets, but nothing that the user's own file sets.

    Raises:
        ConfigError: the space does not exist or breaks a rule, or a flag sets a field that the space searches.
    """
    space = load_space(name)
    for field in recipe_changes(options):
        if field in space.domains:
            raise ConfigError(f"{_spell(field)}: must be left out, since search space {space.name} searches {field}.")
    with _as_flags(name="pruner"):
        pruner = replace(space.pruner, name=options.pruner or space.pruner.name)
    own = set_by_user(name) if options.demo else frozenset()
    base = change_recipe(options, space.base, own)
    own_sizes = space.own_sizes and base.image_size == space.base.image_size
    budget = replace(space.budget, trials=DEMO_TRIALS) if options.demo and "trials" not in own else space.budget
    return replace(space, own_sizes=own_sizes, base=base, budget=change_budget(options, budget), pruner=pruner)


def change_budget(options: argparse.Namespace, budget: Budget) -> Budget:
    """Return `budget` with the limits that flags set.

    Raises:
        ConfigError: flags break their rules; the message lists all of them.
    """
    trials = budget.trials if options.trials is None else options.trials
    with _as_flags(time="time_budget"):
        asked = BudgetTable(trials) if options.time_budget is None else BudgetTable(trials, options.time_budget)
    return Budget(trials, budget.time_s if asked.time is None else asked.time)


def count_candidates(options: argparse.Namespace, space: SearchSpace) -> int:
    """Return how many of a search's best trials are ranked again: as --rerank says, else 3, or 0 in a small search.

    Raises:
        ConfigError: --rerank breaks its rule.
    """
    if options.rerank is None:  # the best of few trials is not that lucky, and six refits would double a small search
        return 3 if space.budget.trials >= 10 else 0
    number: int = options.rerank
    if number == 1 or number < 0:
        raise ConfigError(f"--rerank: must be 0 or at least 2, but got {number}.")
    return number


def read_prior(options: argparse.Namespace, mlruns: Path) -> tuple[str, ...]:
    """Return which earlier studies a search learns from: auto, none, or names.

    Raises:
        ConfigError: a name is unknown, or stands beside auto or none.
    """
    asked = tuple(dict.fromkeys(options.prior or [DEFAULT_PRIOR]))
    words = [name for name in asked if name in (AUTO_PRIOR, NO_PRIOR)]
    if words and len(asked) > 1:
        raise ConfigError(f"--prior: {words[0]} must stand alone, but got {' '.join(asked)}.")
    known = [journal.parent.name for journal in list_journals(mlruns)]
    for name in asked:
        if name not in (AUTO_PRIOR, NO_PRIOR, *known):
            raise ConfigError(f"--prior: {unknown_name('study', name, [AUTO_PRIOR, NO_PRIOR, *known])}")
    return asked


def _given(options: argparse.Namespace) -> list[str]:
    """Return the names of the options that were given."""
    return [option for option, value in vars(options).items() if value is not None and value is not False]


def _spell(option: str) -> str:
    return f"--{option.replace('_', '-')}"


@contextlib.contextmanager
def _as_flags(**spelt: str) -> Iterator[None]:
    """Replace the keys in a configuration error by the flags that set them; `spelt` has the flags of other names."""
    try:
        yield
    except ConfigError as error:
        lines = [line.partition(": ") for line in str(error).splitlines()]
        raise ConfigError("\n".join(f"{_spell(spelt.get(key, key))}: {rest}" for key, _, rest in lines)) from None


def images_of(given: str) -> str:
    """Return the name of a data set, or the absolute path of a folder or CSV file of images.

    Raises:
        ConfigError: there is no such data set, folder or file.
    """
    if not given:
        raise ConfigError("must not be empty.")
    if given in SOURCES:
        return given
    path = absolute(given)
    if path.is_file() and path.suffix.lower() not in TABLES:
        raise ConfigError(f"must be a folder or a {' or '.join(TABLES)} file, but got {given!r}.")
    if not path.exists():
        raise ConfigError(unknown_name("data set, folder or file", given, SOURCES))
    return str(path)


def _weights(given: str) -> str:
    if given in WEIGHTS:
        return given
    file = absolute(given)
    if not file.exists():
        raise ConfigError(unknown_name("weights, file or directory", given, WEIGHTS))
    return str(file)
