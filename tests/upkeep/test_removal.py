"""Removing a study takes its directory, its runs and their files, and nothing of another study."""

import shutil

import pytest
from filelock import FileLock
from support.manifests import make_manifest, small_recipe

from study.config.plan import Plan
from study.errors import RecordError
from study.results.record import Record
from study.tracking.client import connect, local_uri
from study.upkeep.inventory import format_entries, list_entries
from study.upkeep.removal import plan_removal, remove

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow


@pytest.fixture
def mlruns(tmp_path, empty_store):
    """Two studies with two runs each, and a file in each run."""
    root = tmp_path / "mlruns"
    root.mkdir()
    shutil.copyfile(empty_store, root / "mlflow.db")
    client = connect(local_uri(root), verbose=False)
    experiment = client.create_experiment("pets", (root / "artifacts" / "pets").as_uri())
    for name in ("one", "two"):
        record = Record.create(root / "studies" / name, make_manifest())
        record.add([Plan(None, "baseline", small_recipe(), 0)])
        record.close()
        for _ in range(2):
            run = client.create_run(experiment, tags={"study.uid": record.uid})
            client.log_text(run.info.run_id, "text", "note.txt")
    return root


def living_runs(mlruns):
    client = connect(local_uri(mlruns), verbose=False)
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def test_remove_takes_one_study_and_its_runs_alone(mlruns):
    uid = Record.read(mlruns / "studies" / "two").uid
    assert remove(plan_removal(mlruns / "studies" / "one")) == 2
    assert [path.name for path in (mlruns / "studies").iterdir()] == ["two"]
    assert {run.data.tags["study.uid"] for run in living_runs(mlruns)} == {uid}
    assert len([*(mlruns / "artifacts").rglob("note.txt")]) == 2


def test_remove_refuses_a_running_study(mlruns):
    directory = mlruns / "studies" / "one"
    removal = plan_removal(directory)
    with FileLock(directory / "lock"), pytest.raises(RecordError, match="one: must not be running to be removed"):
        remove(removal)
    assert directory.is_dir()
    assert len(living_runs(mlruns)) == 4


def test_remove_keeps_runs_that_a_copy_shares(mlruns):
    shutil.copytree(mlruns / "studies" / "one", mlruns / "studies" / "copy")
    removal = plan_removal(mlruns / "studies" / "copy")
    assert any("those of one" in sentence for sentence in removal.describe())
    assert remove(removal) == 0
    assert len(living_runs(mlruns)) == 4


def test_list_shows_every_study_even_a_broken_one(mlruns):
    (mlruns / "studies" / "two" / "journal.log").write_text("broken\n")
    one, two = sorted(list_entries(mlruns), key=lambda entry: entry.name)
    assert (one.kind, one.data, one.state, two.state) == ("baseline", "pets", "interrupted", "unreadable")
    assert one.size_bytes > 0
    assert format_entries([one, two]).splitlines()[0].startswith("study  kind")


def test_list_sees_that_a_study_is_running(mlruns):
    with FileLock(mlruns / "studies" / "one" / "lock"):
        states = {entry.name: entry.state for entry in list_entries(mlruns)}
    assert states == {"one": "running", "two": "interrupted"}
