"""MLflow's UI on the store of this directory's studies, for this machine alone: `python -m study.ui`.

Exit codes: 130 ended by Ctrl-C, 2 usage or nothing to show, 1 it does not start, 0 it is served elsewhere.
"""

import argparse
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
from typing import IO, NoReturn

from study.config import HOST, PORT, existing_store
from study.errors import ConfigError, StudyError

START_S = 90.0
"""Seconds until a server that does not answer is given up; a cold one takes ten or so."""
END_S = 10.0
"""Seconds that it has to end by itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until it is interrupted, and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _show(options.tracking_uri, options.port)
    except ConfigError as error:
        parser.exit(2, f"study: {error}\n")
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m study.ui`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.ui", description="Open MLflow's UI on the studies of this directory.", allow_abbrev=False
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow's store (default: mlruns/mlflow.db)")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help=f"of {HOST} (default: {PORT})")
    return parser


def choose_port(wanted: int) -> int:
    """Return `wanted` if this machine's loopback has it free, else another that is.

    Raises:
        ConfigError: it is no port.
    """
    if not 0 <= wanted <= 65535:
        raise ConfigError(f"--port: must be 0 to 65535, but got {wanted}.")
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: closed ones linger
            probe.bind((HOST, port))
            free: int = probe.getsockname()[1]
            return free
    raise StudyError(f"{HOST}: must have a free port, but has none.")


def _show(tracking_uri: str | None, wanted: int) -> int:
    """Serve the UI until interrupted."""
    port = choose_port(wanted)
    from study.tracking import connect, server_command

    uri = existing_store(tracking_uri, Path("mlruns").absolute())
    client = connect(uri, verbose=False)
    if not client.search_runs([found.experiment_id for found in client.search_experiments()], max_results=1):
        raise ConfigError(f"{uri}: must hold a run, but holds none yet. Run a study first.")
    if uri.startswith(("http://", "https://")):
        print(f"MLflow   {uri} serves its UI itself")
        return 0
    command = [*server_command(uri, port), "--workers", "1"]
    with tempfile.TemporaryFile() as log, _server(command, log) as server:
        _await(server, port, log)
        if port != wanted:
            print(f"port     {wanted} is taken, so it is {port}")
        print(f"MLflow   http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
        server.wait()
        raise StudyError(f"mlflow: must keep running, but ended: {_last_line(log)}")


@contextlib.contextmanager
def _server(command: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own, and leave no process of it behind."""
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # or it starts workers for judges
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
    return lines[-1] if lines else "it said nothing."


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
