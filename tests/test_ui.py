"""MLflow's UI as a user starts it: on this machine alone, on a free port, and gone when it is interrupted."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from study.errors import ConfigError
from study.tracking.client import connect, local_uri
from study.ui import choose_port

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, SQLAlchemy and what they import


def ui(*arguments, cwd):
    command = [sys.executable, "-m", "study.ui", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def room(tmp_path):
    """A directory that a study was run in."""
    mlruns = tmp_path / "mlruns"
    mlruns.mkdir()
    client = connect(local_uri(mlruns), verbose=False)
    client.create_run(client.create_experiment("pets", (mlruns / "artifacts").as_uri()))
    return tmp_path


def group_of(pid):
    """Every process in the groups and sessions that `pid` began."""
    below, added = {pid}, {pid}
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    while added := {child for child, parent in parents.items() if parent in added} - below:
        below |= added
    return below - {pid}


def status_of(address, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_ui_answers_this_machine_alone_and_leaves_no_process(room):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        taken = busy.getsockname()[1]
        with ui("--port", taken, cwd=room) as process:
            first, second = process.stdout.readline(), process.stdout.readline()
            address = second.split()[1]
            port = address.rpartition(":")[2]
            assert first == f"port     {taken} is in use, so the UI uses {port}\n"
            assert address == f"http://127.0.0.1:{port}" != f"http://127.0.0.1:{taken}"
            assert status_of(f"{address}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=pets") == 200
            assert status_of(f"{address}/ajax-api/2.0/mlflow/experiments/get-by-name", Host="elsewhere.org") == 403
            ours = group_of(process.pid)
            assert ours
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "study: ending …\n")
    deadline = time.monotonic() + 20
    while (left := {pid for pid in ours if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == set()


@pytest.mark.slow
@pytest.mark.parametrize("database", [False, True])
def test_ui_exits_2_without_a_store_and_creates_nothing(tmp_path, database):
    if database:
        (tmp_path / "mlruns").mkdir()
        connect(local_uri(tmp_path / "mlruns"), verbose=False)
    with ui(cwd=tmp_path) as process:
        out, errors = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert "mlflow.db: must " in errors and "Run a study first" in errors
    assert len(errors.splitlines()) == 1
    assert (tmp_path / "mlruns").exists() is database


def test_choose_port_takes_the_wanted_one_if_it_is_free():
    free = choose_port(0)
    assert choose_port(free) == free


def test_choose_port_names_a_port_that_is_none():
    with pytest.raises(ConfigError, match="--port: must be 0 to 65535, but got 70000"):
        choose_port(70000)
