"""The command line: flags to a configuration, a configuration to a study, its result to the screen and an exit code.

Exit codes: 0 done, 2 usage or configuration, 1 any other failure, 130 interrupted.
"""

import argparse
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from platformdirs import user_cache_path

from study.config import Recipe, StudyConfig
from study.errors import ConfigError, StudyError, unknown_name
from study.search_space import load_baseline

SOURCES = ("cifar10", "digits")
"""Data sets by name; anything else is a folder."""
DEMO = {"data": "digits", "weights": "none", "image_size": 64}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        config = configure(options)
        return _run(config)
    except ConfigError as error:
        parser.exit(2, f"study: {error}\n")
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("study: interrupted; what was recorded is kept.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m study.run`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.run",
        description="Studies of transfer learning: fixed trials of a recipe, compared in MLflow.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--baseline", nargs="*", metavar="MODEL", required=True,
        help="run the assignment's recipe as fixed trials; default: vgg16 resnet18",
    )  # fmt: skip
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
    recipe.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="default: auto")
    recipe.add_argument(
        "--as-written", action="store_true", help="run the assignment's own solution, mistakes included, to compare"
    )
    machines = parser.add_argument_group("machines and records")
    machines.add_argument("--name", help="of the study (default: its kind and the time)")
    machines.add_argument("--tracking-uri", metavar="URI", help="MLflow's store (default: mlruns/mlflow.db)")
    machines.add_argument("--ray-address", metavar="ADDR", help="join an existing Ray cluster; 'auto' finds it")
    machines.add_argument("--cpus-per-trial", type=float, metavar="N", help="default: all cores without a GPU")
    machines.add_argument("--gpus-per-trial", type=float, metavar="F", help="default: 1 where there is a GPU, else 0")
    machines.add_argument("--concurrent", type=int, metavar="N", help="trials at a time (default: as many as fit)")
    machines.add_argument("--verbose", action="store_true", help="let Ray, Optuna and MLflow speak")
    return parser


def configure(options: argparse.Namespace) -> StudyConfig:
    """Turn flags into a checked configuration, the baseline's file filling in what they do not say.

    Raises:
        ConfigError: a flag or a combination of flags breaks a rule.
    """
    if options.demo:
        for key, value in DEMO.items():
            if getattr(options, key) is None:
                setattr(options, key, value)
    baseline = load_baseline()
    changes = {key: getattr(options, key) for key in ("epochs", "image_size") if getattr(options, key) is not None}
    models = list(dict.fromkeys(options.baseline or baseline.models))
    if options.as_written and (other := [model for model in models if model not in baseline.models]):
        known = " and ".join(baseline.models)
        raise ConfigError(f"--as-written: the assignment's solution knows {known} alone, but got {other[0]!r}.")
    data = options.data or "cifar10"
    fraction = options.fraction
    if fraction is None:
        fraction = baseline.fraction if data == "cifar10" else 1.0
    return StudyConfig(
        name=options.name or time.strftime("baseline-%Y%m%d-%H%M%S"),
        recipes=tuple(_recipe(model, {**baseline.values, **changes}) for model in models),
        as_written=options.as_written,
        data=_source(data),
        data_dir=(options.data_dir or user_cache_path("study") / "data").expanduser().absolute(),
        fraction=fraction,
        weights=_weights(options.weights or "imagenet"),
        seed=baseline.seed if options.seed is None else options.seed,
        precision=options.precision,
        mlruns=Path("mlruns").absolute(),
        tracking_uri=options.tracking_uri,
        ray_address=options.ray_address,
        cpus_per_trial=options.cpus_per_trial,
        gpus_per_trial=options.gpus_per_trial,
        concurrent=options.concurrent,
        verbose=options.verbose,
    )


def _recipe(model: str, values: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"model": model, **values})


def _source(given: str) -> str:
    if given in SOURCES:
        return given
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"--data: {unknown_name('data set or folder', given, SOURCES)}")
    return str(folder)


def _weights(given: str) -> str:
    return given if given in {"imagenet", "none"} else str(Path(given).expanduser().absolute())


def _run(config: StudyConfig) -> int:
    if not config.verbose:
        warnings.filterwarnings("ignore")
    from optuna.logging import WARNING, set_verbosity

    from study.console import Console  # imports torch, Ray, Optuna and MLflow: seconds
    from study.tuner import run_study

    if not config.verbose:
        set_verbosity(WARNING)

    console = Console()
    try:
        result = run_study(config, console)
    finally:
        console.close()
    console.print_result(result)
    return 0 if all(trial.state == "complete" for trial in result.trials) else 1


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
