"""Open MLflow's store, and say how its UI is opened.

Knows no study.
"""

import contextlib
import json
import logging
import os
import re
import shlex
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from filelock import FileLock

from study.environment import TRACKING_URI, python_command
from study.errors import ConfigError, TrackingError, first_line, without_credentials
from study.files import PARTIAL, replace_file

if TYPE_CHECKING:
    from mlflow import MlflowClient as MlflowClient  # for modules that pass on the client of `connect`


SQLITE = "sqlite:///"

HOST = "127.0.0.1"
"""Address of the MLflow UI: only this machine can open the UI."""

PORT = 5000
"""Default port of the MLflow UI."""

VIEW = "study"
"""Key under which an experiment keeps the columns of its table of runs, for links (`mlflow.sharedViewState.<key>`)."""

COMPARED = ("search", "baseline", "as-written", "probe")
"""Stages whose trials MLflow's UI compares: neither probes before a search nor refits."""
MOST_COMPARED = 50
"""Largest number of runs in a link: browsers and servers may refuse much longer addresses."""

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's database that hold the places of artifacts, as absolute URIs."""


def local_uri(mlruns: Path) -> str:
    """Return the URI of MLflow's default tracking store: a SQLite file in `mlruns`."""
    return _sqlite_uri(mlruns / "mlflow.db")


def _sqlite_uri(file: Path) -> str:
    """Return the URI of a SQLite file, relative where the path of the current directory has a URI's own characters.

    Quoting them would not do: MLflow also makes directories from the URI as it stands.
    """
    return f"{SQLITE}{os.path.relpath(file) if set('%?') & set(str(file)) else file}"


def existing_store(tracking_uri: str | None, mlruns: Path) -> str:
    """Return `tracking_uri`, else the store that MLFLOW_TRACKING_URI names, else the default store in `mlruns`.

    Raises:
        ConfigError: the store is a SQLite file that does not exist.
    """
    uri = tracking_uri or os.environ.get(TRACKING_URI) or local_uri(mlruns)
    file = Path(uri.removeprefix(SQLITE))
    if uri.startswith(SQLITE) and not file.is_file():
        raise ConfigError(
            f"{file}: must be MLflow's database, but there is none."
            " Run a study first, or change to the directory where one was run."
        )
    return uri


ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the user's password in it, if the server has one
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    # The tracker retries in its own thread, and before that asks MLflow which data has arrived.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


def ui_command(uri: str, study: str) -> str:
    """Return the command that opens MLflow's UI on the runs of a study, in the store at `uri`."""
    default = os.environ.get(TRACKING_URI) or local_uri(Path("mlruns").absolute())
    store = [] if uri == without_credentials(default) else ["--tracking-uri", uri]
    return shlex.join([python_command(), "-m", "study.ui", study, *store])


def server_command(port: int) -> list[str]:
    """Return the command that serves MLflow's UI, only to browsers on this machine; it lacks the store's URI."""
    options = ["--host", HOST, "--port", str(port), "--allowed-hosts", f"localhost:{port},{HOST}:{port}"]
    return [sys.executable, "-m", "mlflow", "ui", *options]


def study_url(client: "MlflowClient", address: str, study: str) -> str | None:
    """Return where MLflow's UI compares the trials of a study, the best first, or shows the table of its experiment.

    Args:
        client: connection to the store.
        address: address of the UI, without a trailing slash.
        study: name of the study.

    Returns:
        None if the store has no run of the study.
    """
    if "'" in study:  # no name of a study has one, and it would end the string in the filter
        return None
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    order = ["metrics.val_accuracy DESC", "metrics.test_accuracy DESC"]
    runs = client.search_runs(experiments, f"tags.`study.name` = '{study}'", order_by=order)
    trials = [run for run in runs if run.data.tags.get("study.stage") in COMPARED]
    if not runs:
        return None
    experiment = runs[0].info.experiment_id
    if len(trials) < 2:
        return table_url(address, experiment)
    return comparison_url(address, experiment, [run.info.run_id for run in trials])


def table_url(address: str, experiment: str) -> str:
    """Return the address of an experiment's table of runs, with the columns that `Tracker` chose for it.

    Args:
        address: address of the UI, without a trailing slash.
        experiment: id of the experiment.
    """
    return f"{address}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}"


def comparison_url(address: str, experiment: str, runs: Sequence[str]) -> str:
    """Return the address at which MLflow's UI compares runs: parallel coordinates, parameters and metrics.

    Args:
        address: address of the UI, without a trailing slash.
        experiment: id of the experiment of the runs.
        runs: ids of the runs, the most important first; at most MOST_COMPARED of them are compared.
    """
    chosen, of = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (runs[:MOST_COMPARED], [experiment]))
    return f"{address}/#/compare-runs?runs={chosen}&experiments={of}"


def connect(uri: str, *, verbose: bool) -> "MlflowClient":
    """Open the store at `uri`, create the database of a local store, and check that the store answers.

    Raises:
        TrackingError: the store does not answer or cannot be written.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # the tracker has to know what has arrived
    import mlflow

    if not verbose:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # `study` reports errors itself, without traceback
    try:
        if uri.startswith(SQLITE):
            file = Path(uri.removeprefix(SQLITE))
            _make_database(file)
            _follow_move(file)
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # requests, SQLAlchemy, sqlite3 and MLflow have no common base class
        if schema := re.search(r"schema \(found version (\w+)", str(error)):
            raise TrackingError(_explain_schema(uri, schema[1])) from error
        raise TrackingError(
            f"{_origin(uri)} {without_credentials(uri)}: must be a store that answers, but got {first_line(error)!r}. "
            "Start the server, or leave this out to use a local file."
        ) from error
    return client


def _origin(uri: str) -> str:
    return TRACKING_URI if uri == os.environ.get(TRACKING_URI) else "--tracking-uri"


def _explain_schema(uri: str, found: str) -> str:
    """Describe in one line that a database's schema has the version `found`, which is not that of this MLflow."""
    import mlflow
    from mlflow.store import db_migrations

    older = any(Path(db_migrations.__path__[0], "versions").glob(f"{found}_*.py"))
    if older:
        command = shlex.join([sys.executable, "-m", "mlflow", "db", "upgrade", without_credentials(uri)])
        advice = f"Copy the database, then run: {command}"
    else:
        advice = "Install the MLflow that made it: its runs have the tag version.mlflow."
    return (
        f"{_origin(uri)} {without_credentials(uri)}: must have the database schema of MLflow {mlflow.__version__},"
        f" but has that of {'an older' if older else 'a newer'} MLflow (version {found}). {advice}"
    )


def _make_database(file: Path) -> None:
    """Create a local store's database if it is missing, completely or not at all.

    MLflow's migrations take seconds and cannot resume after a crash.
    """
    if file.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with FileLock(file.with_name(f".{file.name}.lock")):
        for left in file.parent.glob(f"{file.stem}.*{PARTIAL}*"):
            left.unlink(missing_ok=True)
        if file.exists():
            return
        with replace_file(file) as draft:
            store = SqlAlchemyStore(_sqlite_uri(draft), (file.parent / "artifacts").absolute().as_uri())  # type: ignore[no-untyped-call]
            store.engine.dispose()


def _follow_move(file: Path) -> None:
    """Correct the places of artifacts in a local store's database after its directory was moved, renamed or copied.

    MLflow stores absolute URIs: it would write new artifacts below the old path, and no longer find the old ones. The
    default experiment, which every store has, tells where the directory was.
    """
    now = (file.parent / "artifacts").absolute().as_uri()
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        row = database.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
        before = row[0].removesuffix("/0") if row else now
        if before == now:
            return
        for table, column in LOCATIONS:
            database.execute(
                f"UPDATE {table} SET {column} = :now || substr({column}, :slash)"
                f" WHERE substr({column}, 1, :slash) = :before || '/'",
                {"now": now, "before": before, "slash": len(before) + 1},
            )
