"""Read MLflow's runs back for tests, and play a server that does not answer."""

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

from mlflow import MlflowClient
from mlflow.entities import Run

from study.tracking.client import connect, local_uri


def open_store(room: Path) -> MlflowClient:
    """Connect to the store of the studies that were run in `room`."""
    return connect(local_uri(room / "mlruns"), verbose=False)


def runs_of(client: MlflowClient, study: str = "one") -> tuple[Run, dict[str, Run]]:
    """Return a study's own run, and its trials' runs by the key of the trial."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.study.name = '{study}'")
    (parent,) = (run for run in runs if "study.trial" not in run.data.tags)
    return parent, {run.data.tags["study.trial"]: run for run in runs if run is not parent}


class SilentServer(BaseHTTPRequestHandler):
    """A server that takes a request and never answers it."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Remember the request, and let it wait."""
        self.asked.append(self.path)
        time.sleep(3)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""
