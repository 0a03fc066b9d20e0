"""A search as a user runs it: what its trials cannot see, and that it repeats itself."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import trial_processes
from ray import tune
from support.commands import study_command
from support.manifests import make_manifest
from support.mlflow_runs import open_store, runs_of

from study.bench.training import make_images
from study.config.plan import Plan
from study.dispatch.cluster import Allotment, ray_session
from study.dispatch.run_trials import run_trials
from study.dispatch.searcher import Work
from study.dispatch.stages import put_stages
from study.results.metrics import EpochResult
from study.results.record import Record
from study.training.run_trial import Inputs

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns when it reads the runs back

SPACE = """
model = "resnet18"
[space]
lr = { type = "float", low = 1e-5, high = 1e-2, log = true }
unfreeze_depth = { type = "int", low = 0, high = 2 }
[fixed]
batch_size = 8
"""
FLAGS = ["--search", "small.toml", "--weights", "none", "--image-size", "32", "--data", "noise"]
TIMES = {
    "datetime_start", "datetime_complete", "ended_ms", "epoch_s", "val_s", "seconds", "images_per_s", "worker_id",
    "uid", "features", "unfinished",
}  # fmt: skip
MOMENTS = ("spent_s", "test_opened/")
"""What differs between two runs of one seed: moments and names, and whether the store had the features already."""
SIDE = 32
MARK = bytes.fromhex("5f0ac3917be2d44886f11d3a60b9ce27")
"""First red values of every image, so that one pass over a process's memory finds all images."""


@pytest.fixture
def room(tmp_path) -> Path:
    """A directory with a small space and a folder of noise in two classes: no two images alike, all begin with MARK."""
    (tmp_path / "small.toml").write_text(SPACE)
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label in ("a", "b"):
            folder = tmp_path / "noise" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
                pixels[0, : len(MARK), 0] = list(MARK)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path


def pixels_of(folder: Path) -> set[bytes]:
    """The red plane of each image, as it lies in a study's arrays."""
    return {np.asarray(Image.open(file))[:, :, 0].tobytes() for file in folder.rglob("*.png")}


def found_in_memory(pid: int, images: set[bytes]) -> set[bytes]:
    """Return those of the images, which all begin with MARK, that are in a process's memory, shared memory included."""
    found: set[bytes] = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span = re.match(r"(\w+)-(\w+) r", line)
            if span is None or ".so" in line:  # libraries aside
                continue
            start, end = (int(part, 16) for part in span.groups())
            try:
                memory.seek(start)
                content = memory.read(end - start)
            except (OSError, ValueError, OverflowError):
                continue
            at = content.find(MARK)
            while at >= 0:
                found |= {content[at : at + SIDE**2]} & images
                at = content.find(MARK, at + 1)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc to look into a process's memory")
def test_search_trial_has_no_test_image_in_memory(room):
    tested, trained = pixels_of(room / "noise" / "test"), pixels_of(room / "noise" / "train")
    arguments = [*FLAGS, "--epochs", "100000", "--pruner", "none"]
    small = {**os.environ, "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(10**8)}  # which is searched as well
    with subprocess.Popen(study_command(*arguments), cwd=room, stdout=subprocess.PIPE, text=True, env=small) as process:
        assert process.stdout
        for line in process.stdout:
            if "epoch 2/" in line:
                break
        trials = trial_processes(process.pid)
        held = [found_in_memory(pid, tested | trained) for pid in trials]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert trials
    assert any(len(found & trained) > 15 for found in held), "nothing was seen at all"
    assert all(found.isdisjoint(tested) for found in held)


def journal_of(room: Path, name: str) -> list[object]:
    """The journal of a study but for times."""

    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in TIMES and not key.startswith(MOMENTS)}
        return [strip(item) for item in value] if isinstance(value, list) else value

    text = (room / "mlruns" / "studies" / name / "journal.log").read_text().replace(str(room), "")
    stripped = [strip(json.loads(line)) for line in text.splitlines()]
    return [line for line in stripped if line.get("user_attr") != {}]  # what noted a moment alone


def run_at_once(commands: list[list[str]], rooms: list[Path]) -> None:
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    pairs = zip(commands, rooms, strict=True)
    searches = [subprocess.Popen(study_command(*command), cwd=room, **pipes) for command, room in pairs]
    errors = [search.communicate()[1] for search in searches]
    assert [search.returncode for search in searches] == [0] * len(commands), errors


@pytest.mark.slow
def test_searches_of_one_seed_write_the_same_journal(room):
    rooms = [Path(shutil.copytree(room, room / name)) for name in ("former", "latter")]
    arguments = [*FLAGS, "--epochs", "2", "--trials", "3", "--repeats", "1", "--concurrent", "1", "--name", "one"]
    run_at_once([arguments, arguments], rooms)
    former, latter = (journal_of(each, "one") for each in rooms)
    assert len(former) > 30
    assert former == latter


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) % 2 == 1, reason="needs CPU cores that two trials can share")
def test_trials_of_small_networks_run_side_by_side(room):
    arguments = [*FLAGS, "--epochs", "20", "--trials", "2", "--pruner", "none", "--repeats", "1", "--name", "one"]
    done = subprocess.run(study_command(*arguments), cwd=room, capture_output=True, text=True)
    assert re.search(r"machine +\d+ CPU cores? per trial, 2 at a time\n", done.stdout), done.stderr
    first, second = Record.read(room / "mlruns/studies/one").trials()
    assert max(first.started_ms, second.started_ms) < min(first.ended_ms, second.ended_ms)
    assert {trial.facts["threads"] for trial in (first, second)} == {(os.cpu_count() or 1) // 2}


@pytest.mark.slow
def test_two_searches_run_at_once_in_one_directory(room):
    arguments = [*FLAGS, "--epochs", "1", "--trials", "1", "--repeats", "1", "--seed"]
    run_at_once([[*arguments, "0", "--name", "one"], [*arguments, "1", "--name", "two"]], [room, room])
    client = open_store(room)
    assert [runs_of(client, name)[0].info.status for name in ("one", "two")] == ["FINISHED"] * 2
    assert len(client.search_model_versions("name = 'noise-resnet18'")) == 2


@pytest.mark.slow
def test_killed_trial_ends_under_its_own_number(room):
    arguments = ["--baseline", "resnet18", *FLAGS[2:], "--epochs", "40", "--name", "killed"]
    process = subprocess.Popen(
        study_command(*arguments), cwd=room, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        assert process.stdout
        for line in process.stdout:
            if "epoch 3/" in line:
                break
        (trial,) = trial_processes(process.pid)
        os.kill(trial, signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "starting again" in output
    assert "Traceback" not in output
    record = Record.read(room / "mlruns" / "studies" / "killed")
    (only,) = record.trials()
    assert (only.state, [result.epoch for result in only.epochs]) == ("complete", list(range(1, 41)))


@pytest.mark.slow
def test_trial_that_kills_its_process_fails_after_two_retries(tmp_path, make_recipe):
    tries = tmp_path / "tries"

    def die_but_first(config, *, inputs):
        if config["plan"].number == 2:
            raise ImportError("no such library")  # as Ray does for a module that the process cannot import
        if config["plan"].number == 1:
            with open(tries, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        tune.report({"report": EpochResult(1, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=[[1, 0], [0, 1]])})

    record = Record.create(tmp_path / "one", make_manifest())
    record.add(Plan(None, "search", make_recipe(lr=lr, epochs=1), 0) for lr in (0.1, 0.2, 0.3))
    inputs = Inputs(make_images(2), None, None, 2, {}, "auto")
    with ray_session(None, verbose=False) as scratch:
        work = Work(record, put_stages([inputs]))
        run_trials(lambda: work, resources=Allotment(1, 0, 1), scratch=scratch, function=die_but_first)
    record.close()
    first, killed, broken = record.trials()
    assert (first.state, killed.state, broken.state) == ("complete", "failed", "failed")
    assert killed.reason == "its process died 3 times, for lack of memory perhaps."
    assert broken.reason == f"its process died 3 times, the last time by ImportError: no such library, in {__file__}."
    assert tries.read_text() == "xxx"


@pytest.mark.slow
def test_search_of_a_table_is_reproduced_from_its_card(room):
    """The split of the groups, the broken file, the range of greys and the fit all come from the record."""
    lines = ["path,label,group"]
    for index in range(24):
        values = np.random.default_rng(index).integers(1000, 3000, (16, 48)).astype(np.uint16)
        Image.fromarray(values).save(room / f"{index}.png")
        lines.append(f"{index}.png,{'ab'[index % 2]},{index // 2}")
    (room / "0.png").write_bytes(b"")
    (room / "labels.csv").write_text("\n".join(lines))
    flags = "--weights none --image-size 32 --epochs 1 --trials 1 --repeats 1 --fit pad --skip-broken --name one"
    searched = study_command("--search", "small.toml", "--data", "labels.csv", *flags.split())
    done = subprocess.run(searched, cwd=room, capture_output=True, text=True)
    assert "left out 1 × broken\n" in done.stdout, done.stderr
    card = json.loads((room / "mlruns/studies/one/model/model.json").read_text())
    assert card["recipe"]["fit"] == "pad"
    assert card["found"]["grey_range"] == pytest.approx([1000, 3000], abs=5)
    again = subprocess.run(study_command("--reproduce", "one"), cwd=room, capture_output=True, text=True)
    assert "confusion matrix: the same" in again.stdout, again.stderr
