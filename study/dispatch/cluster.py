"""Start Ray for one study, or join an existing cluster, and divide its CPUs and GPUs among trials.

Knows no trial and no record. `share_resources` needs a Ray that `ray_session` has joined.
"""

import contextlib
import logging
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from study.environment import CUDA_GRAPHS
from study.errors import ConfigError, StudyError
from study.exit_codes import SIGNALS
from study.files import scratch_directory
from study.limits import make_processes_allowed

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's default is 15: a trial would starve beside any other load
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial that was given no GPU sees none
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # `study` prints its own output
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # Ray prints tracebacks; `study` reports a dead process in one line
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the record keeps the results
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `study` handles Ctrl-C itself
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # Tune's own state is never read
}

TRIAL_ENVIRONMENT = {
    # Let glibc keep the memory of freed activations. Otherwise glibc returns it to the system, which clears it again
    # for each batch. Keeping it gives 32 % more images/s through ResNet18's prefix on two cores.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # Take pages of 2 MB instead of 4 KB, where the kernel lets programs choose: 1 to 13 % more images/s in training.
    "GLIBC_TUNABLES": ":".join(filter(None, (os.environ.get("GLIBC_TUNABLES"), "glibc.malloc.hugetlb=1"))),
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # makes CUDA's matrix products reproducible
    "PYTHONWARNINGS": "ignore",
}
"""Environment variables of the processes that run trials."""
PLAIN_ENVIRONMENT = {key: TRIAL_ENVIRONMENT[key] for key in ("CUBLAS_WORKSPACE_CONFIG", "PYTHONWARNINGS")}
"""The same for the assignment's solution as it was written, without the settings that make it faster."""


MAX_TEMPORARY_PATH_BYTES = 28
"""Longest temporary directory below which Ray's sockets fit: the rest of their path takes 79 bytes, of 107."""
MIN_PROCESSES = 250
"""Processes and threads that a local Ray and one trial need: 218 were counted with Ray 2.60 on two cores."""
STARTS, TOO_SLOW = 3, "timed out during startup"
"""How often a local Ray is started at most, and the words of Ray's error where its processes were too slow."""
MUCH = 0.25
"""Part of a computer's cores, used by other programs, from which on a trial on all cores is warned of."""
MAX_CAUSE = 400
"""Characters of Ray's own message in an error."""


@dataclass(frozen=True)
class Allotment:
    """CPU cores and GPUs of one trial, and the number of concurrent trials."""

    cpus_per_trial: float
    gpus_per_trial: float
    concurrent: int

    def __str__(self) -> str:
        """Describe the allotment in words."""
        gpus = f" and {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else ""
        cores = "core" if self.cpus_per_trial == 1 else "cores"
        return f"{self.cpus_per_trial:g} CPU {cores}{gpus} per trial, {self.concurrent} at a time"

    def waits_for_others(self, busy: float, cores: int) -> bool:
        """Tell whether the threads of a trial on CPUs wait for other programs.

        Args:
            busy: number of this computer's CPU cores that other programs keep busy.
            cores: number of all its CPU cores.
        """
        takes_all = self.cpus_per_trial > 1 and self.cpus_per_trial * self.concurrent >= cores
        return takes_all and not self.gpus_per_trial and busy >= MUCH * cores


@contextlib.contextmanager
def ray_session(
    address: str | None, *, verbose: bool, environment: Mapping[str, str] = TRIAL_ENVIRONMENT
) -> Iterator[Path]:
    """Start a local Ray, or join the cluster at `address`; yield a scratch directory, and leave Ray at the end.

    A local Ray has no dashboard and ends with this process. Its ports listen on all interfaces, so it requires a token
    (Ray's default since 2.60). The token is created for this Ray and is written to no file.

    Args:
        address: address of an existing cluster; None to start a local Ray.
        verbose: whether Ray prints its log.
        environment: environment variables of the processes that run trials.

    Raises:
        StudyError: Ray does not start, or the cluster does not answer.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if address is None:
        if lack := make_processes_allowed(MIN_PROCESSES):  # Ray itself would start its processes again for ever
            raise StudyError(f"local Ray: needs {MIN_PROCESSES} processes and threads, but {lack}. Raise that limit.")
        os.environ.setdefault("RAY_AUTH_TOKEN", _token())
    import ray  # reads the environment when imported

    if ray.is_initialized():  # by this program itself, whose Ray must not be shut down below
        raise StudyError("Ray: must not be running in this process, but is. Call ray.shutdown() first.")
    if not verbose:  # warnings about unread files, and about dead processes, which `study` reports
        for name in ("ray.tune.execution.experiment_state", "ray.tune.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_directory(_short_directory()))
            if address is None:
                options |= {"include_dashboard": False, "num_cpus": usable_cores(), "_temp_dir": str(scratch)}
            stack.callback(ray.shutdown)
            if address is None:
                with _variables(environment):
                    _start_local(options)
            else:
                variables = {**environment, CUDA_GRAPHS: os.environ.get(CUDA_GRAPHS, "")}
                ray.init(address=address, runtime_env={"env_vars": variables}, **options)
        except Exception as error:  # Ray raises OSError, PermissionError, bare Exception and others
            raise StudyError(_explain(error, address)) from error
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray's own handler would exit before the record is closed
                signal.signal(number, handler)
        yield scratch


def _start_local(options: Mapping[str, Any]) -> None:
    """Start a local Ray; try again where its processes took more than the 30 s that Ray gives them, on a busy machine.

    Raises:
        Exception: Ray does not start.
    """
    import ray

    for left in reversed(range(STARTS)):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:
            if not left or TOO_SLOW not in str(error):
                raise
            ray.shutdown()


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, which every process of a local Ray inherits.

    Named as a `runtime_env` instead, they would cost 2.9 s more until the first trial, measured with Ray 2.60.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@cache
def _token() -> str:
    """Return the token of all local Rays of this process: Ray reads it once, and a program may run several studies."""
    return secrets.token_hex(32)


def usable_cores() -> int | None:
    """Return 1 where a container's CPU quota is below one core, which Ray would round down to none; else None."""
    from ray._private.utils import get_num_cpus

    return 1 if get_num_cpus(override_docker_cpu_warning=True) < 1 else None


def _short_directory() -> Path | None:
    """Return the directory for Ray's files: RAY_TMPDIR, or /tmp where the temporary directory's path is too long.

    None for the temporary directory.
    """
    if named := os.environ.get("RAY_TMPDIR"):
        return Path(named)
    long = len(os.fsencode(tempfile.gettempdir())) > MAX_TEMPORARY_PATH_BYTES
    return Path("/tmp") if long and os.access("/tmp", os.W_OK) else None


def _explain(error: Exception, address: str | None) -> str:
    """Describe in one line why Ray did not start, with its own message in at most MAX_CAUSE characters."""
    place = f"--ray-address {address}" if address else "local Ray"
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if len(versions) == 2:
        theirs, ours = (f"Ray {ray} with Python {python}" for ray, python in versions)
        return f"{place}: must run {ours}, as this environment does, but runs {theirs}. Install the same on both sides."
    cause = " ".join(str(error).split()) or type(error).__name__
    cause = cause if len(cause) <= MAX_CAUSE else f"{cause[: MAX_CAUSE - 1]}…"
    advice = (
        "Set RAY_TMPDIR to a short, writable directory with free space, or raise the limits on processes and memory."
    )
    if address:
        advice = "Check that the cluster runs, and that RAY_AUTH_TOKEN is the cluster's."
    return f"{place}: must start and answer, but got: {cause} {advice}"


def share_resources(
    cpus: float | None,
    gpus: float | None,
    concurrent: int | None,
    *,
    trials: int,
    per_gpu: int = 1,
    on_cores: Callable[[int], int] = lambda cores: 1,
) -> Allotment:
    """Divide the CPU cores and GPUs of the joined Ray among trials.

    A value of None is chosen here: a GPU per trial if a node has one, or a part of it, else all cores of a node, or a
    part of them.

    Args:
        cpus: CPU cores of a trial.
        gpus: GPUs of a trial.
        concurrent: largest number of trials at a time.
        trials: number of trials of the study.
        per_gpu: most trials that may share a GPU where `gpus` is None. They do if there are cores for them, and if
            they would not fill the other GPUs.
        on_cores: number of trials without a GPU that share the CPU cores of a node, by the number of its cores; called
            where neither `cpus` nor `concurrent` is given.

    Raises:
        ConfigError: no node has the CPU cores or GPUs that a trial needs.
        StudyError: no node has CPU cores.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise StudyError("--ray-address: a node must have CPU cores for trials, but none has.")
    most_gpus = max(node.get("GPU", 0.0) for node in nodes)
    if gpus is None:
        gpus = 1 / _sharing(nodes, per_gpu, min(trials, concurrent or trials)) if most_gpus >= 1 else 0.0
    hosts = [node for node in nodes if node.get("GPU", 0.0) >= gpus]
    if not hosts:
        raise ConfigError(f"--gpus-per-trial: no node has more than {most_gpus:g} GPU, but got {gpus:g}.")
    if cpus is None:
        # All cores of the smallest host, or its share for each trial that its GPUs take.
        cpus = min(max(1.0, node["CPU"] // max(1, _fit(node.get("GPU", 0.0), gpus))) for node in hosts)
        if not gpus:
            cpus = max(1.0, cpus // (concurrent or on_cores(int(cpus))))
    places = sum(min(_fit(node["CPU"], cpus), _fit(node.get("GPU", 0.0), gpus, trials)) for node in hosts)
    if places == 0:
        most_cpus = max(node["CPU"] for node in hosts)
        raise ConfigError(f"--cpus-per-trial: no node has more than {most_cpus:g} CPU cores, but got {cpus:g}.")
    return Allotment(cpus, gpus, min(places, concurrent or places, max(1, trials)))


def _sharing(nodes: list[dict[str, float]], per_gpu: int, trials: int) -> int:
    """Return how many trials share each GPU: `per_gpu`, halved until each has a core, and each GPU has its trials."""
    hosts = [node for node in nodes if node.get("GPU", 0.0) >= 1]
    cores = min(node["CPU"] // node["GPU"] for node in hosts)
    while per_gpu > 1 and per_gpu > min(cores, trials // sum(node["GPU"] for node in hosts)):
        per_gpu //= 2
    return per_gpu


def describe_shortage(needed: Allotment) -> str | None:
    """Describe what the joined Ray lacks to start a trial now; None if it lacks nothing."""
    import ray
    from ray.util import placement_group_table

    if all(group["state"] != "PENDING" for group in placement_group_table().values()):
        return None  # the trial has its place, and its process is starting
    names = {"CPU": "CPU cores", "GPU": "GPUs"}
    asked = {"CPU": needed.cpus_per_trial, "GPU": needed.gpus_per_trial}
    free, of = ray.available_resources(), ray.cluster_resources()
    lacking = [
        f"{names[kind]}: {free.get(kind, 0):g} of the cluster's {of.get(kind, 0):g} are free, {asked[kind]:g} needed"
        for kind in asked
        if free.get(kind, 0) < asked[kind]
    ]
    return f"waiting for {'; '.join(lacking)}" if lacking else None


def _fit(available: float, each: float, unlimited: int = 0) -> int:
    return int(available / each + 1e-9) if each else unlimited
