"""The command line: flags to a configuration, a configuration to a study, its result to the screen and an exit code.

Exit codes: 0 done, 2 usage or configuration, 1 any other failure, 130 interrupted.
"""

import argparse
import contextlib
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from platformdirs import user_cache_path

from study.config import StudyConfig, find_study
from study.design import Design
from study.errors import ConfigError, StudyError, unknown_name
from study.resume import check_flags, check_space, recorded_config
from study.search_space import Budget, SearchSpace, baseline_recipe, load_baseline, load_space, parse_duration

if TYPE_CHECKING:
    from study.console import Console
    from study.record import Record

SOURCES = ("cifar10", "digits")
"""Data sets by name; anything else is a folder."""
DEMO = {"data": "digits", "weights": "none", "image_size": 64}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _fill_in(options)
        if options.resume:
            return _resume(options)
        return _search(options) if options.search else _run_baseline(options)
    except ConfigError as error:
        parser.exit(2, f"study: {error}\n")
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("study: interrupted; what was recorded is kept, and --resume latest goes on with it.", file=sys.stderr)
        return 130


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
        help="search a space, a shipped one (vgg16, resnet18) or a file.toml, and judge its best recipe",
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
    recipe.add_argument("--precision", choices=("auto", "bf16", "fp32"), help="default: auto")
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


def _fill_in(options: argparse.Namespace) -> None:
    """Let --demo stand for the flags that it abbreviates, and refuse flags of the other command.

    Raises:
        ConfigError: a flag does not go with the command.
    """
    if options.resume and options.name:
        raise ConfigError(f"--name: must be left out beside --resume, which names the study, but got {options.name!r}.")
    if not options.resume and options.search is None and options.baseline is None:
        raise ConfigError("one of --baseline, --search and --resume must be given. --help says more.")
    searching, fixed = ("trials", "time_budget", "pruner", "repeats"), ("as_written",)
    foreign = fixed if options.search else searching if options.baseline is not None else ()
    for flag in foreign:
        given = getattr(options, flag)
        if given is not None and given is not False:  # a 0 was given too
            wanted = "--baseline" if options.search else "--search"
            raise ConfigError(f"--{flag.replace('_', '-')}: goes with {wanted} only.")
    if options.demo:
        for key, value in DEMO.items():
            if getattr(options, key) is None:
                setattr(options, key, value)


def _configure(options: argparse.Namespace, name: str) -> StudyConfig:
    """Turn flags into a checked configuration, the baseline's file filling in what they do not say."""
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


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a recipe that flags set."""
    return {key: getattr(options, key) for key in ("epochs", "image_size") if getattr(options, key) is not None}


def _run_baseline(options: argparse.Namespace) -> int:
    baseline = load_baseline()
    models = list(dict.fromkeys(options.baseline or baseline.models))
    if options.as_written and (other := [model for model in models if model not in baseline.models]):
        known = " and ".join(baseline.models)
        raise ConfigError(f"--as-written: the assignment's solution knows {known} alone, but got {other[0]!r}.")
    recipes = [replace(baseline_recipe(model), **_overrides(options)) for model in models]
    config = _configure(options, options.name or time.strftime("baseline-%Y%m%d-%H%M%S"))
    stage = "as-written" if options.as_written else "baseline"
    return _run(config, Design(stage, tuple(recipes)))


def _search(options: argparse.Namespace) -> int:
    """Search each space in turn, as a study of its own."""
    repeats = 3 if options.repeats is None else options.repeats
    if repeats < 1:
        raise ConfigError(f"--repeats: must be at least 1, but got {repeats}.")
    spaces = [_space(name, options) for name in dict.fromkeys(options.search)]
    if options.name and len(spaces) > 1:
        raise ConfigError(f"--name: names one study, but --search names {len(spaces)}. Leave it out.")
    started = time.strftime("%Y%m%d-%H%M%S")
    configs = [_configure(options, options.name or f"{space.name}-{started}") for space in spaces]
    exit_code = 0
    for space, config in zip(spaces, configs, strict=True):
        baseline = replace(baseline_recipe(space.base.model), **_overrides(options))
        design = Design("search", (baseline,), space, repeats)
        exit_code = _run(_with_resources(config, space), design) or exit_code
    return exit_code


def _with_resources(config: StudyConfig, space: SearchSpace) -> StudyConfig:
    """Let the space's file say what no flag says of the machines."""
    asked = space.resources
    return replace(
        config,
        cpus_per_trial=config.cpus_per_trial or asked.cpus_per_trial,
        gpus_per_trial=asked.gpus_per_trial if config.gpus_per_trial is None else config.gpus_per_trial,
        concurrent=config.concurrent or asked.concurrent,
    )


def _resume(options: argparse.Namespace) -> int:
    """Go on with a study, as its record says that it began."""
    directory = find_study(options.resume, Path("mlruns").absolute())
    config = _configure(options, directory.name)
    spaces = [_space(name, options) for name in options.search or []]
    _heavy(options.verbose)
    from study.record import Record

    record = Record.open(directory)
    try:
        manifest = record.manifest
        given = {"data": options.data and config.data, "weights": options.weights and config.weights}
        check_flags(options, manifest, given)
        for space in spaces:
            check_space(space, manifest)
        design = Design.from_dict(manifest)
        _check_budget(options, record)
        if record.space:
            record.set_budget(_budget(options, record.space.budget))
            design = replace(design, space=record.space)
            config = _with_resources(config, record.space)
    except BaseException:
        record.close()
        raise
    return _run(recorded_config(manifest, config), design, record)


def _check_budget(options: argparse.Namespace, record: "Record") -> None:
    """Make sure that a study may still spend what the flags say.

    Raises:
        ConfigError: it is no search, or it is to search on though its verdict has begun.
    """
    trials = len(record.trials())
    if record.space is None and (options.trials is not None or options.time_budget is not None):
        raise ConfigError("--trials, --time-budget: go with a search only, but the study has fixed trials.")
    if record.judging and options.trials is not None and options.trials > trials:
        raise ConfigError(
            f"--trials: must be at most {trials}, since the test images have been opened for the verdict, but got"
            f" {options.trials}. Begin a new study."
        )


def _run(config: StudyConfig, design: Design, record: "Record | None" = None) -> int:
    console, tuner = _heavy(config.verbose)
    with contextlib.closing(console):
        result = tuner.run_study(config, design, console, record)
    console.print_result(result)
    return 0 if result.succeeded else 1


def _space(name: str, options: argparse.Namespace) -> SearchSpace:
    """Load a space and let the flags change its base, budget and pruner."""
    space = load_space(name)
    for field in _overrides(options):
        if field in space.domains:
            raise ConfigError(f"--{field.replace('_', '-')}: is searched by {space.name}, so it cannot be set.")
    with _as_flag("--pruner"):
        pruner = replace(space.pruner, name=options.pruner or space.pruner.name)
    base = replace(space.base, **_overrides(options))
    return replace(space, base=base, budget=_budget(options, space.budget), pruner=pruner)


def _budget(options: argparse.Namespace, budget: Budget) -> Budget:
    with _as_flag("--trials"):
        budget = replace(budget, trials=budget.trials if options.trials is None else options.trials)
    if options.time_budget is not None:
        budget = replace(budget, time_s=parse_duration(options.time_budget, place="--time-budget"))
    return budget


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
    return given if given in {"imagenet", "none"} else str(Path(given).expanduser().absolute())


def _heavy(verbose: bool) -> "tuple[Console, ModuleType]":
    """Import torch, Ray, Optuna and MLflow, which takes seconds, and silence them unless they are to speak."""
    if not verbose:
        warnings.filterwarnings("ignore")
    from optuna.logging import WARNING, set_verbosity

    from study import tuner
    from study.console import Console

    if not verbose:
        set_verbosity(WARNING)
    return Console(), tuner


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
