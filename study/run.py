"""Run one command of `python -m study.run`, print its result and return its exit code; `flags.py` defines the flags.

Exit codes: 0 done, 2 usage or configuration, 1 any other failure, 130 interrupted.
"""

import argparse
import contextlib
import logging
import re
import secrets
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from study.command_line import overview
from study.config.flags import (
    build_parser,
    change_budget,
    change_recipe,
    configure,
    count_candidates,
    fill_in,
    read_space,
    with_resources,
)
from study.config.load_toml import baseline_recipe, load_baseline
from study.config.paths import check_new, find_study
from study.config.plan import Design, Repeats, StudyConfig
from study.config.resume_flags import check_flags, check_space, recorded_config
from study.environment import remarks
from study.errors import ConfigError
from study.exit_codes import run_command

if TYPE_CHECKING:
    from study.results.record import Record
    from study.tuning.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without arguments, show all commands."""
    if not (sys.argv[1:] if arguments is None else arguments):
        print(overview())
        return 0
    options = build_parser().parse_args(arguments)
    return run_command(lambda: _run_options(options))


def _run_options(options: argparse.Namespace) -> int:
    fill_in(options)
    if options.models:
        return _list_models()
    if options.reproduce:
        return _reproduce(options.reproduce)
    if options.resume:
        return _resume(options)
    return _search(options) if options.search else _run_baseline(options)


def _run_baseline(options: argparse.Namespace) -> int:
    baseline = load_baseline()
    models = list(dict.fromkeys(options.baseline or baseline.models))
    if options.as_written and (other := [model for model in models if model not in baseline.models]):
        known = " and ".join(baseline.models)
        raise ConfigError(f"--as-written: models must be among {known}, as in the assignment, but got {other[0]!r}.")
    recipes = [change_recipe(options, baseline_recipe(model)) for model in models]
    config = configure(options, options.name or _default_name("baseline"))
    check_new(_directory(config))
    stage = "as-written" if options.as_written else "baseline"
    return _run(config, Design(stage, tuple(recipes)))


def _search(options: argparse.Namespace) -> int:
    """Search the spaces one after the other, each in its own study."""
    repeats: Repeats = "auto" if options.repeats is None else options.repeats
    if repeats != "auto" and repeats < 1:
        raise ConfigError(f"--repeats: must be at least 1, but got {repeats}.")
    spaces = [read_space(name, options) for name in dict.fromkeys(options.search)]
    if options.name and len(spaces) > 1:
        raise ConfigError(f"--name: must be left out when --search has several spaces, but got {len(spaces)} spaces.")
    names = [space.name for space in spaces]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"--search: spaces must have different names, but got {twice!r} twice. Rename a file, or leave one out."
        )
    designs = [
        Design(
            "search",
            (change_recipe(options, baseline_recipe(space.base.model)),),
            space,
            repeats,
            count_candidates(options, space),
            options.metric or "accuracy",
        )
        for space in spaces
    ]
    configs = [configure(options, options.name or _default_name(space.name)) for space in spaces]
    for config in configs:
        check_new(_directory(config))
    exit_code = 0
    for space, design, config in zip(spaces, designs, configs, strict=True):
        exit_code = _run(with_resources(config, space), design) or exit_code
    return exit_code


def _resume(options: argparse.Namespace) -> int:
    """Continue a study with its recorded settings."""
    directory = find_study(options.resume, Path("mlruns").absolute())
    config = configure(options, directory.name)
    spaces = [read_space(name, options) for name in options.search or []]
    with _naming(directory):
        _load_libraries(config)
        from study.results.record import Record

        record = Record.open(directory)
    try:
        manifest = record.manifest
        given = {"data": options.data and config.data, "weights": options.weights and config.weights}
        check_flags(options, manifest, given)
        for space in spaces:
            check_space(space, manifest)
        design = manifest.design
        _check_budget(options, record)
        if record.space:
            record.set_budget(change_budget(options, record.space.budget))
            design = replace(design, space=record.space)
            config = with_resources(config, record.space)
    except BaseException:
        record.close()
        raise
    return _run(recorded_config(options, manifest, config), design, record)


def _check_budget(options: argparse.Namespace, record: "Record") -> None:
    """Check that the study allows the budget that the flags ask for.

    Raises:
        ConfigError: the study has fixed trials, or more trials are asked for after the verdict has begun.
    """
    trials = len(record.trials())
    if record.space is None and (options.trials is not None or options.time_budget is not None):
        raise ConfigError("--trials, --time-budget: need a search, but the study has fixed trials.")
    if record.judging and options.trials is not None and options.trials > trials:
        raise ConfigError(
            f"--trials: must be at most {trials}, since the best ones are being judged, but got"
            f" {options.trials}. Begin a new study."
        )


def _list_models() -> int:
    from study.models.list_models import format_models, list_models

    print(format_models(list_models()))
    return 0


def _reproduce(name: str) -> int:
    directory = find_study(name, Path("mlruns").absolute(), needs="model")
    warnings.filterwarnings("ignore")
    from study.tuning.reproduce import describe, reproduce

    reproduction = reproduce(
        directory, lambda epoch: print(f"epoch {epoch.epoch}  loss {epoch.train_loss:.4f}", flush=True)
    )
    print("\n".join(describe(reproduction)))
    return 0 if reproduction.agrees else 1


def _run(config: StudyConfig, design: Design, record: "Record | None" = None) -> int:
    with _naming(_directory(config)):
        console = _load_libraries(config)
        recorded = record.manifest.versions if record else None
        console.print_remarks(remarks(config.tracking_uri, config.ray_address, recorded=recorded))
        from study.tuning.run_study import run_study

        with contextlib.closing(console):
            result = run_study(config, design, console, record)
        console.print_result(result)
    return 0 if result.succeeded else 1


@contextlib.contextmanager
def _naming(directory: Path) -> Iterator[None]:
    """Add to an interruption's message how to continue the study in `directory`, if the study has begun."""
    try:
        yield
    except KeyboardInterrupt:
        hint = f"interrupted; the record is kept. To continue: python -m study.run --resume {directory.name}"
        raise KeyboardInterrupt(hint if directory.is_dir() else "") from None


def _default_name(prefix: str) -> str:
    """Return a name that no other study gets, not even one that another process begins in the same second."""
    prefix = re.sub(r"[^A-Za-z0-9._-]+", "-", prefix).strip("-._")[:40] or "search"
    return f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _directory(config: StudyConfig) -> Path:
    return config.mlruns / "studies" / config.name


def _load_libraries(config: StudyConfig) -> "Console":
    """Import torch, Ray, Optuna and MLflow, which takes seconds; silence them unless --verbose is given."""
    if not config.verbose:
        warnings.filterwarnings("ignore")
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home directory that it cannot write
    from optuna.logging import WARNING, set_verbosity

    from study.tuning.console import Console

    if not config.verbose:
        set_verbosity(WARNING)
    return Console(config.weights)


if __name__ == "__main__":
    sys.exit(main())
