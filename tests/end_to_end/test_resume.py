"""Resume a study whose verdict was cut off: it is finished, rebuilt or refused, and nothing is ever unpickled."""

import json
import os
import pickle
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest
from support.commands import study_command
from support.images import write_image_folder
from support.manifests import make_manifest
from support.mlflow_runs import open_store, runs_of

from study.results.record import Record

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # MLflow warns when it reads the runs back

SPACE = """
model = "resnet18"
[space]
lr = { type = "float", low = 1e-5, high = 1e-2, log = true }
[fixed]
batch_size = 8
"""
SEARCH = ["--search", "small.toml", "--weights", "none", "--image-size", "32", "--epochs", "2", "--repeats", "1",
          "--rerank", "2", "--concurrent", "1"]  # fmt: skip


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def hostile_pickle(room: Path) -> bytes:
    return pickle.dumps(Hostile(room / "was-run"))


def run(room: Path, *arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XDG_CACHE_HOME": str(room / "cache")}
    return subprocess.run(
        study_command(*arguments), cwd=room, capture_output=True, text=True, timeout=200, env=environment
    )


def results(room: Path, study: str = "one") -> list[object]:
    record = Record.read(room / "mlruns" / "studies" / study)
    return [(trial.plan, trial.state, trial.value, trial.test) for trial in record.all_trials()]


def cut(room: Path, before: Callable[[str], bool]) -> None:
    """Leave a study as if it had been killed before it wrote the first such line."""
    study = room / "mlruns" / "studies" / "one"
    lines = (study / "journal.log").read_text().splitlines(keepends=True)
    (study / "journal.log").write_text("".join(takewhile(lambda line: not before(line), lines)))
    shutil.rmtree(study / "model")


def cut_before_first_test(room: Path) -> None:
    """Leave a study as if it had been killed when the verdict's first trial was about to be tested."""
    cut(room, lambda line: '"user_attr":{"test":' in line)


def lay_pickles(room: Path) -> None:
    """Put code where a study keeps weights and features."""
    study = room / "mlruns" / "studies" / "one"
    checkpoints = [study / "checkpoints" / f"{key}.safetensors" for key in ("0", "1", "final-0", "final-1")]
    features = [path for path in (room / "cache").rglob("*.safetensors") if path.is_file()]
    assert features
    for path in [*checkpoints, *features]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(hostile_pickle(room))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with images and a finished search of them."""
    room = tmp_path_factory.mktemp("finished")
    write_image_folder(room / "pets")
    (room / "small.toml").write_text(SPACE)
    done = run(room, *SEARCH, "--data", "pets", "--trials", "2", "--name", "one")
    assert done.returncode == 0, done.stderr
    return room


@pytest.fixture
def room(finished: Path, tmp_path: Path) -> Path:
    """A copy of that directory; its images stay where they were."""
    return Path(shutil.copytree(finished, tmp_path / "room"))


def test_cut_verdict_is_finished_and_unpickles_nothing(room, finished):
    cut_before_first_test(room)
    lay_pickles(room)
    done = run(room, "--resume", "one")
    assert done.returncode == 0, done.stderr
    assert results(room) == results(finished)
    assert not (room / "was-run").exists()


def test_cut_reranking_is_finished(room, finished):
    """The study ends within the second epoch of the first refit on the second split."""
    record = Record.read(room / "mlruns" / "studies" / "one")
    second = record._ids["rerank-2"]
    cut(room, lambda line: f'"trial_id":{second},"user_attr":{{"epoch/2"' in line)
    done = run(room, "--resume", "one")
    assert done.returncode == 0, done.stderr
    assert results(room) == results(finished)
    assert len({trial.plan.seed for trial in Record.read(record.directory).reranks()}) == 2


def test_changed_image_is_refused(room, finished):
    cut_before_first_test(room)
    image = finished / "pets" / "train" / "cat" / "0.png"
    pixels = image.read_bytes()
    shutil.copyfile(finished / "pets" / "train" / "dog" / "1.png", image)
    try:
        done = run(room, "--resume", "one")
    finally:
        image.write_bytes(pixels)
    assert done.returncode == 1
    assert re.search(r"^study: \S+/one: data fingerprint must stay \w+, but got \w+\.", done.stderr, re.MULTILINE)


def test_study_goes_on_after_all_of_it_has_moved(room, finished, tmp_path):
    cut_before_first_test(room)
    studies = room / "mlruns" / "studies"
    (studies / "one").rename(studies / "renamed")
    room = room.rename(tmp_path / "50% moved?")
    shutil.copytree(finished / "pets", room / "my pets")
    (finished / "pets").rename(finished / "elsewhere")
    try:
        lost = run(room, "--resume", "renamed")
        done = run(room, "--resume", "renamed", "--data", "my pets")
    finally:
        (finished / "elsewhere").rename(finished / "pets")
    assert "must hold the study's images, but is missing. If moved, add --data" in lost.stderr
    assert done.returncode == 0, done.stderr
    assert results(room, "renamed") == results(finished)
    card = json.loads((room / "mlruns" / "studies" / "renamed" / "model" / "model.json").read_text())
    assert card["source"] == str(room / "my pets")
    (room / "my pets").rename(room / "our pets")
    (room / "no pets").mkdir()
    for place in ("our pets", "no pets"):
        ended = run(room, "--resume", "renamed", "--data", place)
    assert "data: must hold the images of study 'renamed', but" in ended.stderr
    assert Record.read(room / "mlruns" / "studies" / "renamed").manifest.source == str(room / "our pets")
    client = open_store(room.rename(tmp_path / "moved again"))  # MLflow keeps stores by URI, here a relative one
    parent, _ = runs_of(client, "renamed")
    assert "report.html" in [file.path for file in client.list_artifacts(parent.info.run_id)]
    assert parent.info.run_name == "renamed"


def test_ended_study_is_rebuilt_from_its_journal_alone(room, finished):
    shutil.rmtree(room / "mlruns" / "artifacts")
    (room / "mlruns" / "mlflow.db").unlink()
    lay_pickles(room)
    (finished / "pets").rename(finished / "elsewhere")
    try:
        done = run(room, "--resume", "latest", "--trials", "2")
    finally:
        (finished / "elsewhere").rename(finished / "pets")
    assert done.returncode == 0, done.stderr
    assert results(room) == results(finished)
    client = open_store(room)
    runs = client.search_runs([client.get_experiment_by_name("pets").experiment_id])
    keys = sorted(run.data.tags.get("study.trial", "parent") for run in runs)
    trials = Record.read(room / "mlruns" / "studies" / "one").all_trials()
    assert keys == sorted(["parent", *(trial.plan.key for trial in trials)])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert client.get_model_version_by_alias("pets-resnet18", "champion")


def test_more_trials_are_refused_after_the_verdict(room, run_here):
    refused = run_here(room, "--resume", "one", "--trials", "9")
    assert refused.returncode == 2
    assert "since the search has ended" in refused.stderr


def test_pickles_in_place_of_model_and_journal_are_refused(room, run_here):
    study = room / "mlruns" / "studies" / "one"
    for path in (study / "model").iterdir():
        path.write_bytes(hostile_pickle(room))
    assert "model/model.json: must be JSON" in run(room, "--resume", "one").stderr
    (study / "journal.log").write_bytes(hostile_pickle(room))
    refused = run_here(room, "--resume", "one")
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert (study / "journal.log").read_bytes() == hostile_pickle(room)
    assert not (room / "was-run").exists()


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", ".one-draft"])
def test_no_name_leads_out_of_the_studies(tmp_path, name):
    Record.create(tmp_path / "mlruns" / "studies" / "one", make_manifest()).close()
    done = run(tmp_path, "--resume", name)
    assert done.returncode == 2
    assert "unknown study" in done.stderr
