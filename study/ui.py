"""Serve MLflow's UI on the store of this directory's studies, to this machine only: `python -m study.ui STUDY`.

Exit codes: 0 a server already serves the UI, 1 the UI does not start, 2 wrong usage or no runs, 130 ended by Ctrl-C.
Needs a store that has a run. Knows no record: the UI shows only MLflow's data.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from study.command_line import Parser
from study.config.paths import find_study
from study.errors import ConfigError, StudyError, without_credentials
from study.exit_codes import run_command
from study.tracking.client import HOST, PORT, existing_store

START_S = 90.0
"""Seconds that the server has to answer; a cold start takes about ten."""
END_S = 10.0
"""Seconds that the server has to end after a signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until it is interrupted, and return its exit code."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")
    return run_command(lambda: _show(options.study, options.tracking_uri, options.port), interrupted="")


def build_parser() -> Parser:
    """Build the parser of `python -m study.ui`."""
    parser = Parser(prog="python -m study.ui", description="Open MLflow's UI on the studies of this directory.")
    parser.add_argument(
        "study", nargs="?", metavar="STUDY", help="study whose runs to open, or latest (default: the list of all)"
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="URI of MLflow's store (default: mlruns/mlflow.db)")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"port on {HOST} (default: {PORT})")
    return parser


def choose_port(wanted: int) -> int:
    """Return the port `wanted` if it is free on this machine's loopback interface, else another free port.

    Raises:
        ConfigError: `wanted` is not a port number.
        StudyError: no port is free.
    """
    if not 0 <= wanted <= 65535:
        raise ConfigError(f"--port: must be 0 to 65535, but got {wanted}.")
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # like the server: closed connections linger
            probe.bind((HOST, port))
            free: int = probe.getsockname()[1]
            return free
    raise StudyError(f"{HOST}: must have a free port, but has none.")


def _show(study: str | None, tracking_uri: str | None, wanted: int) -> int:
    """Serve the UI until the user interrupts it."""
    port = choose_port(wanted)
    from study.tracking.client import connect, server_command, study_url

    mlruns = Path("mlruns").absolute()
    uri = existing_store(tracking_uri, mlruns)
    if study == "latest":
        study = find_study(study, mlruns).name
    client = connect(uri, verbose=False)
    if not client.search_runs([experiment.experiment_id for experiment in client.search_experiments()], max_results=1):
        raise ConfigError(f"{uri}: must hold a run, but has none yet. Run a study first.")
    serves = uri.startswith(("http://", "https://"))
    address = without_credentials(uri).rstrip("/") if serves else f"http://{HOST}:{port}"
    if study:
        found = study_url(client, address, study)
        if found is None:
            raise ConfigError(f"{without_credentials(uri)}: must hold runs of study {study!r}, but has none.")
        address = found
    if serves:
        print(f"MLflow   {address} (the store serves its UI itself)")
        return 0
    command = [*server_command(port), "--workers", "1"]
    with tempfile.TemporaryFile() as log, _server(command, uri, log) as server:
        _await(server, port, log)
        if port != wanted:
            print(f"port     {wanted} is in use, so the UI uses {port}")
        print(f"MLflow   {address}  (stop with Ctrl-C)", flush=True)
        server.wait()
        raise StudyError(f"mlflow: must keep running, but ended: {_last_line(log)}")


@contextlib.contextmanager
def _server(command: Sequence[str], uri: str, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server of the store at `uri` in its own process group, and leave no process of the group behind."""
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # no workers for LLM judges
        "MLFLOW_BACKEND_STORE_URI": uri,  # not in the command, which other users can see: a URI may have a password
    }
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
    )
    try:
        yield server
    finally:
        for last in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, last)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(END_S)


def _await(server: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
            return
        time.sleep(0.2)
    raise StudyError(f"mlflow: must answer within {START_S:.0f} s, but did not: {_last_line(log)}")


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "the server printed nothing."


if __name__ == "__main__":
    sys.exit(main())
