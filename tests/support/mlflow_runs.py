"""Read MLflow's runs back for tests."""

from pathlib import Path

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
