"""A store is opened, made whole, and found again where its directory is now."""

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import mlflow
import pytest
import requests
from mlflow.artifacts import download_artifacts
from support.mlflow_runs import SilentServer

from study.environment import keep_loopback_direct
from study.errors import TrackingError
from study.tracking.client import (
    MOST_COMPARED,
    comparison_url,
    connect,
    existing_store,
    local_uri,
    server_command,
    ui_command,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, SQLAlchemy and what they import


class Healthy(BaseHTTPRequestHandler):
    """A server that answers OK."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize("answers", ["closed", "silent"])
def test_connect_names_a_server_that_does_not_answer(monkeypatch, answers):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    server = HTTPServer(("127.0.0.1", 0), SilentServer)
    port = server.server_port
    if answers == "silent":
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()
    with pytest.raises(TrackingError, match=rf"--tracking-uri http://127.0.0.1:{port}: must be a store that answers"):
        connect(f"http://127.0.0.1:{port}", verbose=False)
    if answers == "silent":
        server.shutdown()
        server.server_close()


def test_environment_names_the_store_if_no_flag_does(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert existing_store(None, tmp_path) == "http://host:5000"
    assert existing_store("http://flag:5000", tmp_path) == "http://flag:5000"


def test_comparison_url_names_runs_and_experiment_as_json():
    address, _, query = comparison_url("http://127.0.0.1:5000", "7", ["a1", "b2"]).partition("?")
    assert address == "http://127.0.0.1:5000/#/compare-runs"
    assert parse_qs(query) == {"runs": ['["a1","b2"]'], "experiments": ['["7"]']}


def test_comparison_url_has_room_for_the_first_runs_only():
    url = comparison_url("http://host:5000", "7", [f"{number:032x}" for number in range(200)])
    assert url.startswith("http://host:5000/#/compare-runs?")
    assert len(json.loads(parse_qs(url.partition("?")[2])["runs"][0])) == MOST_COMPARED


def test_registry_is_the_store_of_the_runs(tmp_path, monkeypatch, empty_store):
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    assert connect(local_uri(tmp_path), verbose=False).search_registered_models() == []


def test_loopback_server_is_not_asked_through_a_proxy(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    keep_loopback_direct()
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert requests.get(f"http://127.0.0.1:{server.server_port}/health", timeout=5).text == "OK"


@pytest.mark.slow
def test_connect_remakes_a_half_made_database(tmp_path):
    """As a driver leaves it that is killed while MLflow migrates: killed as soon as there are tables."""
    mlruns = tmp_path / "mlruns"
    mlruns.mkdir()
    code = f"from study.tracking.client import connect; connect({local_uri(mlruns)!r}, verbose=False)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while process.poll() is None and not any(path.stat().st_size > 10_000 for path in mlruns.iterdir()):
            time.sleep(0.001)
        process.kill()
    assert [path.suffix for path in mlruns.iterdir() if path.stat().st_size > 10_000] == [".partial"]
    connect(local_uri(mlruns), verbose=False)
    assert sorted(path.name for path in mlruns.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_connect_names_a_store_of_no_known_kind():
    with pytest.raises(TrackingError, match=r"--tracking-uri carrier-pigeon://nest: must be a store that answers"):
        connect("carrier-pigeon://nest", verbose=False)


def test_server_answers_loopback_alone():
    command = shlex.join(server_command(5000))
    assert "--host 127.0.0.1 --port 5000 --allowed-hosts localhost:5000,127.0.0.1:5000" in command


def test_ui_command_is_short_for_the_default_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert shlex.split(ui_command(local_uri(tmp_path / "mlruns"), "one"))[1:] == ["-m", "study.ui", "one"]
    other = local_uri(tmp_path / "my studies" / "mlruns")
    assert shlex.split(ui_command(other, "one"))[3:] == ["one", "--tracking-uri", other]


def test_ui_command_names_a_store_that_the_environment_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:5000")
    assert "--tracking-uri" not in ui_command("http://host:5000", "one")
    assert "--tracking-uri" in ui_command(local_uri(tmp_path / "mlruns"), "one")


@pytest.mark.parametrize(
    ("schema", "advice"),
    [
        (
            "451aebb31d03",
            r"an older MLflow \(version 451aebb31d03\)\. Copy the database, then run: .* -m mlflow db upgrade sqlite:///",
        ),
        ("ffffffffffff", r"a newer MLflow \(version ffffffffffff\)\. Install the MLflow that made it"),
    ],
)
def test_database_of_another_schema_is_refused_with_advice(tmp_path, empty_store, schema, advice):
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (schema,))
    versions = rf"must have the database schema of MLflow {re.escape(mlflow.__version__)}, but has that of "
    with pytest.raises(TrackingError, match=versions + advice):
        connect(local_uri(tmp_path), verbose=False)


@pytest.fixture
def filled_store(tmp_path, empty_store):
    """Return a function that fills a store in a directory with an experiment and a run that has an artifact."""

    def fill(mlruns: Path) -> str:
        mlruns.mkdir(parents=True)
        shutil.copyfile(empty_store, mlruns / "mlflow.db")
        client = connect(local_uri(mlruns), verbose=False)
        experiment = client.create_experiment("pets", (mlruns / "artifacts" / "pets").as_uri())
        run = client.create_run(experiment).info.run_id
        artifacts = mlruns / "artifacts" / "pets" / run / "artifacts"
        artifacts.mkdir(parents=True)
        (artifacts / "first.txt").write_text("first")  # not by the client, which remembers in memory where a run's are
        return run

    return fill


def read_artifact(mlruns: Path, run: str, name: str) -> str:
    uri = local_uri(mlruns)
    place = connect(uri, verbose=False).get_run(run).info.artifact_uri
    return Path(download_artifacts(artifact_uri=f"{place}/{name}", tracking_uri=uri)).read_text()


def test_artifacts_are_found_where_the_directory_is_now(tmp_path, filled_store):
    run = filled_store(tmp_path / "old" / "mlruns")
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_artifact(tmp_path / "new" / "mlruns", run, "first.txt") == "first"


def test_new_artifacts_are_written_where_the_directory_is_now(tmp_path, filled_store):
    run = filled_store(tmp_path / "old" / "mlruns")
    (tmp_path / "old").rename(tmp_path / "new")
    client = connect(local_uri(tmp_path / "new" / "mlruns"), verbose=False)
    client.log_text(run, "second", "second.txt")
    client.log_text(client.create_run("1").info.run_id, "third", "third.txt")
    assert not (tmp_path / "old").exists()
    assert len(list((tmp_path / "new").rglob("*.txt"))) == 3


def test_copy_of_a_store_leaves_the_original_alone(tmp_path, filled_store):
    run = filled_store(tmp_path / "old" / "mlruns")
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    connect(local_uri(tmp_path / "copy" / "mlruns"), verbose=False).log_text(run, "second", "second.txt")
    assert read_artifact(tmp_path / "old" / "mlruns", run, "first.txt") == "first"
    assert not list((tmp_path / "old").rglob("second.txt"))


@pytest.mark.parametrize("name", ["50% done?", "a#b;c[1] 'd' \"e\"", "фото ü 写真", "-x", "line\nbreak", "back\\slash"])
def test_store_works_in_any_directory(tmp_path, monkeypatch, filled_store, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    run = filled_store(Path("mlruns").absolute())
    assert read_artifact(Path("mlruns").absolute(), run, "first.txt") == "first"
    assert os.listdir(tmp_path / name) == ["mlruns"]
    assert set(os.listdir("mlruns")) == {"artifacts", "mlflow.db"}
