"""Remove a study: its directory and its runs in MLflow, but nothing of another study and no registered model."""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from study.config.paths import list_journals
from study.errors import RecordError, StudyError, TrackingError, first_line
from study.results.record import Record
from study.tracking.client import SQLITE, connect, local_uri
from study.upkeep.inventory import size_of

if TYPE_CHECKING:
    from study.tracking.client import MlflowClient


@dataclass(frozen=True)
class Removal:
    """What is removed with a study."""

    directory: Path
    size_bytes: int
    store: str
    """URI of MLflow's store, with its credentials if the environment has them."""
    uid: str
    """Id of the study in MLflow."""
    shared_with: str
    """Name of a copy or original that has the same runs, which then stay; "" if there is none."""

    def describe(self) -> Iterator[str]:
        """Yield a sentence for each thing that happens."""
        if self.shared_with:
            yield f"its runs in MLflow stay, since they are also those of {self.shared_with}"
        else:
            yield "its runs in MLflow are deleted; those of a server can be restored there"
        yield "versions of its models that are registered stay, and can be loaded: they have files of their own"
        yield "later verdicts no longer count that it opened its test images, and cannot reuse its refits"


def plan_removal(directory: Path, tracking_uri: str | None = None) -> Removal:
    """Say what removing a study would remove.

    Args:
        directory: directory of the study, below an `mlruns/studies`.
        tracking_uri: MLflow's store; None for the one that the record names.

    Raises:
        RecordError: the record cannot be read.
    """
    record = Record.read(directory)
    mlruns = directory.parents[1]
    others = [journal.parent for journal in list_journals(mlruns) if journal.parent != directory]
    shared = next((other.name for other in others if _uid(other) == record.uid), "")
    store = tracking_uri or record.manifest.tracking_uri or local_uri(mlruns)
    return Removal(directory, size_of(directory), store, record.uid, shared)


def remove(removal: Removal) -> int:
    """Remove a study, its runs first, so that a failure can be repeated; return the number of runs.

    Raises:
        RecordError: a process runs the study, or its files cannot be removed.
        TrackingError: MLflow does not answer.
    """
    directory = removal.directory
    lock = FileLock(directory / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RecordError(f"{directory}: must not be running to be removed, but a process runs it.") from None
    try:
        runs = 0 if removal.shared_with else _delete_runs(removal)
        # Renamed first: a removal that is cut off leaves a hidden directory, which is no study.
        grave = Path(tempfile.mkdtemp(prefix=f".{directory.name}-removed-", dir=directory.parent))
        directory.rename(grave / directory.name)
        shutil.rmtree(grave)
    except OSError as error:
        raise RecordError(f"{directory}: must be removable, but got: {error.strerror}.") from None
    finally:
        lock.release()
    return runs


def _delete_runs(removal: Removal) -> int:
    """Delete the runs of one study in MLflow, and their files in a local store."""
    local = removal.store.startswith(SQLITE)
    if local and not Path(removal.store.removeprefix(SQLITE)).is_file():
        return 0
    client = connect(removal.store, verbose=False)
    try:
        runs = [*_find_runs(client, removal.uid)]
        for run, place in reversed(runs):  # children before the parent
            client.delete_run(run)
            if local:
                _remove_files(run, place, removal.directory.parents[1] / "artifacts")
    except Exception as error:  # requests, SQLAlchemy and MLflow have no common base class
        raise TrackingError(
            f"{removal.directory.name}: its runs must be deletable, but got: {first_line(error)}"
        ) from error
    return len(runs)


def _find_runs(client: "MlflowClient", uid: str) -> Iterator[tuple[str, str]]:
    """Yield the id of each run of a study, and the URI of its files."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    while True:
        page = client.search_runs(
            experiments, f"tags.`study.uid` = '{uid}'", order_by=["attributes.start_time ASC"], page_token=token
        )
        yield from ((run.info.run_id, run.info.artifact_uri) for run in page)
        token = page.token
        if not token:
            return


def _remove_files(run: str, uri: str, artifacts: Path) -> None:
    """Remove a run's own files, which lie below `artifacts`; registered models lie elsewhere, and stay."""
    place = Path(unquote(urlsplit(uri).path))
    if place.is_relative_to(artifacts) and run in place.parts:
        shutil.rmtree(place, ignore_errors=True)


def _uid(directory: Path) -> str:
    try:
        return Record.read(directory).uid
    except StudyError:
        return ""
