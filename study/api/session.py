"""Run one planned study with a person watching, and leave this process as it was."""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from study.api.planning import Job, naming
from study.config.paths import make_writable
from study.config.resume_flags import check_places
from study.dispatch.cluster import PLAIN_ENVIRONMENT, TRIAL_ENVIRONMENT, ray_session
from study.environment import remarks
from study.errors import without_credentials
from study.limits import CpuTimes

if TYPE_CHECKING:
    from study.results.record import Record
    from study.ticker import Screen, Ticker
    from study.tuning.finish_study import StudyResult

LIBRARY = "torchvision"
"""Library that is loaded while Ray starts; it does not import Ray. MLflow is loaded while trials' processes start."""


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
            with contextlib.ExitStack() as stack:
                if record:
                    stack.callback(record.close)
                ended = record is not None and _has_ended(job, record, ticker)
                scratch, busy_cores = (None, 0.0) if ended else stack.enter_context(_start_ray(job, ticker))
                from study.console.live import Console
                from study.tuning.run_study import rebuild_study, run_study

                console = Console(config.weights, ticker, busy_cores=busy_cores)
                recorded = record.manifest.versions if record else None
                noted = remarks(config.tracking_uri, config.ray_address, recorded=recorded)
                console.print_remarks([*map(without_credentials, noted), *job.remarks])
                if scratch:
                    result = run_study(config, job.design, console, scratch, record)
                elif record:
                    result = rebuild_study(config, console, record)
            console.print_result(result)
    return result


def _has_ended(job: Job, record: "Record", ticker: "Ticker") -> bool:
    ticker.begin("loading torch, Optuna and MLflow")
    hush(verbose=job.config.verbose)
    from study.tuning.finish_study import has_ended

    return has_ended(record)


@contextlib.contextmanager
def _start_ray(job: Job, ticker: "Ticker") -> Iterator[tuple[Path, float]]:
    """Start or join Ray, and meanwhile load torch: Ray waits for its processes for most of the time.

    Yields Ray's scratch directory, and the number of CPU cores that other programs kept busy before.

    Raises:
        StudyError: a cheap check fails, or Ray does not start.
    """
    config, environment = job.config, PLAIN_ENVIRONMENT if job.design.stage == "as-written" else TRIAL_ENVIRONMENT
    if job.record:
        check_places(config.data, config.weights)
    new = not config.mlruns.exists()
    make_writable(config.mlruns)
    ticker.begin("starting Ray, and loading torch and Optuna")
    before = CpuTimes()
    hush(verbose=config.verbose)
    busy_cores = 0.0 if config.ray_address else before.cores_of_others(CpuTimes())
    busy_cores = min(busy_cores, os.getloadavg()[0])  # of a minute: a program that runs for a moment does not count
    loading = threading.Thread(target=_load, name="load")
    loading.start()
    try:
        with ray_session(config.ray_address, verbose=config.verbose, environment=environment) as scratch:
            loading.join()
            yield scratch, busy_cores
    finally:
        loading.join()
        if new:
            with contextlib.suppress(OSError):  # it has content by now, unless the study was refused
                config.mlruns.rmdir()


def _load() -> None:
    with contextlib.suppress(Exception):  # raised again by the module that needs it
        import_module(LIBRARY)


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
