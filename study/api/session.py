"""Run one planned study with a person watching, and leave this process as it was."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from study.api.planning import Job, naming
from study.environment import remarks
from study.errors import without_credentials

if TYPE_CHECKING:
    from study.ticker import Screen
    from study.tuning.finish_study import StudyResult


def run_job(job: Job, screen: "Screen | None" = None) -> "StudyResult":
    """Run a study to its end, and print its progress and result.

    Args:
        job: study to run; if it is resumed, its record is closed at the end.
        screen: screen to print on; None for standard output.

    Raises:
        StudyError: the study cannot begin or go on.
        KeyboardInterrupt: the user stopped the study; the message says how to continue it.
    """
    config, record = job.config, job.record
    with naming(job.directory):
        from study.ticker import Screen, Ticker

        with contextlib.closing(Ticker(screen or Screen())) as ticker:
            ticker.begin("loading torch, Ray, Optuna and MLflow")
            hush(verbose=config.verbose)
            from study.console.live import Console
            from study.tuning.run_study import run_study

            console = Console(config.weights, ticker)
            recorded = record.manifest.versions if record else None
            noted = remarks(config.tracking_uri, config.ray_address, recorded=recorded)
            console.print_remarks([*map(without_credentials, noted), *job.remarks])
            result = run_study(config, job.design, console, record)
            console.print_result(result)
    return result


def hush(*, verbose: bool) -> None:
    """Silence warnings of libraries and Optuna's log, unless `verbose`; importing Optuna takes a second."""
    if verbose:
        return
    warnings.filterwarnings("ignore")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home directory that it cannot write
    logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)  # in a notebook, it advises to install ipywidgets
    from optuna.logging import WARNING, set_verbosity

    set_verbosity(WARNING)


LOGGERS = (
    "matplotlib",
    "optuna",
    "mlflow",
    "alembic",
    "ray.widgets.util",
    "ray.tune.execution.experiment_state",
    "ray.tune.tune",
)
"""Loggers whose level a study changes."""


@contextlib.contextmanager
def process_restored() -> Iterator[None]:
    """Give a process its environment variables, warning filters and log levels back at the end."""
    environment = dict(os.environ)
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
