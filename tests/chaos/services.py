"""Run the services that a study may use: nodes of a Ray cluster, and MLflow's server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from processes import family, kill_all

START_S = 120
"""Seconds after which a service that is not ready counts as hanging."""


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def service(log: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service, yield its process, and at the end kill the process and all its descendants."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        yield process
    finally:
        kill_all(family(process.pid))
        process.wait()


@contextmanager
def node(
    room: Path, token: dict[str, str], *arguments: str, ip: str = "127.0.0.1"
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a Ray node with one core, as `ray start` does on a machine, and yield its process once it is ready."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
    log = room / f"node-{ip}.log"
    with service(log, *command, f"--node-ip-address={ip}", *arguments, **token) as process:
        wait_until(lambda: b"raylet" in titles(process.pid), process, log)
        yield process


def titles(pid: int) -> bytes:
    """Return the command lines of a process and all its descendants."""
    found = b""
    for each, _ in family(pid):
        with suppress(OSError):
            found += Path(f"/proc/{each}/cmdline").read_bytes()
    return found


@contextmanager
def server(room: Path, port: int) -> Iterator[str]:
    """Run MLflow's server on the room's own database, and yield its address once the server answers."""
    files = ["--backend-store-uri", f"sqlite:///{room}/server.db", "--artifacts-destination", f"{room}/server"]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    uri, log = f"http://127.0.0.1:{port}", room / "server.log"
    with service(log, *command, *files, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false") as process:
        wait_until(lambda: answers(f"{uri}/health"), process, log)
        yield uri


def answers(address: str) -> bool:
    """Return whether a server answers at an address."""
    with suppress(OSError), urllib.request.urlopen(address, timeout=5):
        return True
    return False


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until a service is ready.

    Raises:
        AssertionError: the service ended, or is not ready after `START_S` seconds; the message is its log.
    """
    deadline = time.monotonic() + START_S
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
