"""Ray for the time of one study: our own local one, or an existing cluster; and what of it a trial gets."""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from study.errors import ConfigError, StudyError, first_line

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # of 15 by default: beside any other load a trial would starve
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial that was given no GPU sees none
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # what a person sees is ours to print
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # with their tracebacks; a process that died is told of in a line
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record keeps the results
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours to handle
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is never read
}

TRIAL_ENVIRONMENT = {
    # glibc keeps the memory of freed activations instead of giving it back to the system, which would have to clear it
    # anew for each batch: 32 % more images/s through ResNet18's prefix on two cores.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without which CUDA's matrix products do not repeat themselves
    "PYTHONWARNINGS": "ignore",
}
"""Of the processes that run trials."""
PLAIN_ENVIRONMENT = {key: TRIAL_ENVIRONMENT[key] for key in ("CUBLAS_WORKSPACE_CONFIG", "PYTHONWARNINGS")}
"""Of those that run the assignment's solution as it was written: nothing that would make it faster than it is."""


@dataclass(frozen=True)
class Allotment:
    """What a trial gets and how many run at once."""

    cpus_per_trial: float
    gpus_per_trial: float
    concurrent: int

    def __str__(self) -> str:
        """Say it in words."""
        gpus = f" and {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else ""
        return f"{self.cpus_per_trial:g} CPU cores{gpus} a trial, {self.concurrent} at a time"


@contextlib.contextmanager
def ray_session(
    address: str | None, *, verbose: bool, environment: Mapping[str, str] = TRIAL_ENVIRONMENT
) -> Iterator[Path]:
    """Start a local Ray, or join the cluster at `address`, and leave it at the end; yields a scratch directory.

    A local Ray has no dashboard and ends with this process. Its ports listen on all interfaces, so it asks for a token
    (Ray's default from 2.60 on), which is its own and stands in no file.

    Args:
        address: of an existing cluster; None for a Ray of our own.
        verbose: let Ray speak.
        environment: of the processes that run trials.

    Raises:
        StudyError: Ray does not start, or the cluster does not answer.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray  # reads the environment when imported

    if not verbose:  # of files that nobody reads, and of processes that died, which is told of in a line
        for name in ("ray.tune.execution.experiment_state", "ray.tune.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    scratch = Path(tempfile.mkdtemp(prefix="study-"))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(
                address=address or "local",
                include_dashboard=None if address else False,
                log_to_driver=verbose,
                logging_level=logging.INFO if verbose else logging.ERROR,
                runtime_env={"env_vars": dict(environment)},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            place = f"--ray-address {address}" if address else "local Ray"
            raise StudyError(f"{place}: must start and answer, but {first_line(error)}") from error
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would abort without a word to the record
        yield scratch
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def share_resources(cpus: float | None, gpus: float | None, concurrent: int | None, *, trials: int) -> Allotment:
    """Divide the joined Ray among trials; what is None is chosen: a whole GPU where there is one, else all cores.

    Raises:
        ConfigError: no node has what a trial is to get.
        StudyError: no node has anything to give.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise StudyError("--ray-address: a node must have CPU cores for trials, but none has.")
    most_gpus = max(node.get("GPU", 0.0) for node in nodes)
    if gpus is None:
        gpus = 1.0 if most_gpus >= 1 else 0.0
    hosts = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    if not hosts:
        raise ConfigError(f"--gpus-per-trial: no node has more than {most_gpus:g} GPU, but got {gpus:g}.")
    if cpus is None:
        # All cores of the smallest host, or its share for each trial that its GPUs take.
        cpus = min(max(1.0, node["CPU"] // max(1, _fit(node.get("GPU", 0.0), gpus))) for node in hosts)
        if concurrent and not gpus:
            cpus = max(1.0, cpus // concurrent)
    places = sum(min(_fit(node["CPU"], cpus), _fit(node.get("GPU", 0.0), gpus, trials)) for node in hosts)
    if places == 0:
        most_cpus = max(node["CPU"] for node in hosts)
        raise ConfigError(f"--cpus-per-trial: no node has more than {most_cpus:g} CPU cores, but got {cpus:g}.")
    return Allotment(cpus, gpus, min(places, concurrent or places, max(1, trials)))


def _fit(available: float, each: float, unlimited: int = 0) -> int:
    return int(available / each + 1e-9) if each else unlimited
