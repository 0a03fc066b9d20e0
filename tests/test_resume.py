"""Going on with a study: what may change and what may not, and that what it reads back is never run."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from study.config.flags import build_parser, configure
from study.config.plan import Design
from study.config.resume_flags import check_flags, check_space, recorded_config
from study.config.search_space import Budget, Categorical, Float, Pruner, Resources, SearchSpace
from study.errors import ConfigError
from study.results.record import Record
from study.tracking.client import connect, local_uri

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, which reads the runs back

SPACE = """
model = "resnet18"
[space]
lr = { type = "float", low = 1e-5, high = 1e-2, log = true }
[fixed]
batch_size = 8
"""
SEARCH = ["--search", "small.toml", "--weights", "none", "--image-size", "32", "--epochs", "2", "--repeats", "1"]


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def hostile_pickle(room: Path) -> bytes:
    return pickle.dumps(Hostile(room / "was-run"))


def run(room: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "study.run", *map(str, arguments)]
    return subprocess.run(command, cwd=room, capture_output=True, text=True, timeout=200)


@pytest.fixture
def space(tmp_path, make_recipe):
    return SearchSpace(
        "small", tmp_path, {"lr": Float(1e-5, 1.0)}, make_recipe(), Budget(3), Pruner("asha"), Resources()
    )


@pytest.fixture
def manifest(space):
    """What a search of one seed says of itself."""
    told = {"source": "digits", "fraction": 1.0, "weights": "none", "seed": 0, "precision": "auto"}
    return told | Design("search", (space.base,), space, repeats=3).to_dict()


@pytest.mark.parametrize(
    ("flag", "then", "now"),
    [
        ("--data", "digits", "cifar10"),
        ("--fraction", 1.0, 0.5),
        ("--weights", "none", "imagenet"),
        ("--seed", 0, 1),
        ("--precision", "auto", "fp32"),
        ("--epochs", 2, 3),
        ("--image-size", 32, 64),
        ("--repeats", 3, 4),
        ("--pruner", "asha", "none"),
    ],
)
def test_a_flag_that_would_make_another_study_is_refused_with_both_values(manifest, flag, then, now):
    options = build_parser().parse_args(["--resume", "one", flag, str(now)])
    with pytest.raises(ConfigError, match=rf"^{flag}: must stay {then!r}, as recorded, but got {now!r}\."):
        check_flags(options, manifest, {})


def test_the_flags_that_a_study_began_with_are_taken_again(manifest):
    given = "--data digits --fraction 1 --weights none --seed 0 --epochs 2 --image-size 32 --repeats 3 --pruner asha"
    check_flags(build_parser().parse_args(["--resume", "one", *given.split()]), manifest, {})


@pytest.mark.parametrize(
    ("stage", "flags", "message"),
    [
        ("baseline", ["--baseline", "vgg16"], "--baseline: must stay 'resnet18', as recorded, but got 'vgg16'"),
        ("baseline", ["--as-written"], "--as-written: must stay 'baseline', as recorded, but got 'as-written'"),
        ("search", ["--baseline"], "--baseline: must stay 'search', as recorded, but got 'baseline'"),
        ("search", ["--as-written"], "--as-written: must stay 'search', as recorded, but got 'as-written'"),
    ],
)
def test_another_kind_of_study_and_other_models_are_refused(manifest, stage, flags, message):
    options = build_parser().parse_args(["--resume", "one", *flags])
    with pytest.raises(ConfigError, match=message):
        check_flags(options, {**manifest, "stage": stage}, {})


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("baseline", ["--baseline"]),
        ("baseline", ["--baseline", "resnet18", "resnet18"]),
        ("as-written", ["--baseline", "--as-written"]),
        ("as-written", ["--baseline"]),
    ],
)
def test_the_kind_and_the_models_that_a_study_began_with_are_taken_again(manifest, stage, flags):
    check_flags(build_parser().parse_args(["--resume", "one", *flags]), {**manifest, "stage": stage}, {})


@pytest.mark.parametrize(("flags", "directory"), [([], "/then"), (["--data-dir", "/now"], "/now")])
def test_downloads_may_have_moved(manifest, flags, directory):
    options = build_parser().parse_args(["--resume", "one", *flags])
    told = {**manifest, "data_dir": "/then", "tracking_uri": None}
    assert recorded_config(options, told, configure(options, "one")).data_dir == Path(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": {"lr": Float(1e-6, 1.0)}}, r"--search small: space.lr: must stay"),
        ({"name": "other"}, r"--search: must stay 'small', as recorded, but got 'other'"),
        ({"pruner": Pruner("none")}, r"--search small: pruner.name: must stay 'asha'"),
    ],
)
def test_another_space_is_refused(manifest, space, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_space(replace(space, **changes), manifest)


def test_a_space_of_choices_is_the_same_after_its_way_through_the_journal(space):
    space = replace(space, domains={**space.domains, "optimizer": Categorical(("adam", "sgd"))})
    manifest = json.loads(json.dumps({"space": space.to_dict()}))
    check_space(space, manifest)
    assert SearchSpace.from_dict(manifest["space"]) == SearchSpace.from_dict(space.to_dict()) == space


def test_another_budget_is_no_other_space(manifest, space):
    check_space(replace(space, budget=Budget(9, 60.0)), manifest)


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", ".one-draft"])
def test_no_name_leads_out_of_the_studies(tmp_path, name):
    Record.create(tmp_path / "mlruns" / "studies" / "one", {}).close()
    done = run(tmp_path, "--resume", name)
    assert done.returncode == 2
    assert "unknown study" in done.stderr


def results(room: Path) -> list[object]:
    record = Record.read(room / "mlruns" / "studies" / "one")
    return [(trial.plan, trial.state, trial.value, trial.test) for trial in record.all_trials()]


def lay_pickles(room: Path) -> None:
    """Put code where a study keeps weights and features."""
    study = room / "mlruns" / "studies" / "one"
    checkpoints = [study / "checkpoints" / f"{key}.safetensors" for key in ("0", "1", "final-0", "final-1")]
    features = [path for path in (room / "cache").rglob("*.safetensors") if path.is_file()]
    assert features
    for path in [*checkpoints, *features]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(hostile_pickle(room))


def test_a_search_goes_on_in_its_verdict_is_rebuilt_whole_and_runs_nothing_that_lies_in_its_files(
    tmp_path, image_folder, run_here
):
    (tmp_path / "small.toml").write_text(SPACE)
    done = run(tmp_path, *SEARCH, "--data", image_folder, "--trials", "2", "--name", "one")
    assert done.returncode == 0, done.stderr
    before = results(tmp_path)

    # The verdict's first trial was about to be tested when the study was killed.
    study = tmp_path / "mlruns" / "studies" / "one"
    journal = study / "journal.log"
    lines = journal.read_text().splitlines(keepends=True)
    tested = next(index for index, line in enumerate(lines) if '"user_attr":{"test":' in line)
    journal.write_text("".join(lines[:tested]))
    shutil.rmtree(study / "model")

    # An image is another one now.
    image, other = image_folder / "train" / "cat" / "0.png", image_folder / "train" / "dog" / "1.png"
    pixels = image.read_bytes()
    shutil.copyfile(other, image)
    done = run(tmp_path, "--resume", "one")
    assert done.returncode == 1
    assert re.search(r"^study: \S+/one: data fingerprint must stay \w+, but got \w+\.", done.stderr, re.MULTILINE)
    image.write_bytes(pixels)

    # In each file that may be read lies a pickle with code in it.
    lay_pickles(tmp_path)
    done = run(tmp_path, "--resume", "one")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == before

    # All that MLflow had is gone, the images too, and the pickles are there again.
    image_folder.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "mlruns" / "artifacts")
    (tmp_path / "mlruns" / "mlflow.db").unlink()
    lay_pickles(tmp_path)
    done = run(tmp_path, "--resume", "latest", "--trials", "2")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path) == before
    client = connect(local_uri(tmp_path / "mlruns"), verbose=False)
    runs = client.search_runs([client.get_experiment_by_name("pets").experiment_id])
    keys = sorted(run.data.tags.get("study.trial", "parent") for run in runs)
    record = Record.read(study)
    ended = record.all_trials()
    assert keys == sorted(["parent", *(trial.plan.key for trial in ended)])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert client.get_model_version_by_alias("pets-resnet18", "champion")

    refused = run_here(tmp_path, "--resume", "one", "--trials", "9")
    assert refused.returncode == 2
    assert "since the test images have been opened for the verdict" in refused.stderr

    for path in (study / "model").iterdir():
        path.write_bytes(hostile_pickle(tmp_path))
    assert "model/model.json: must be JSON" in run(tmp_path, "--resume", "one").stderr
    journal.write_bytes(hostile_pickle(tmp_path))
    refused = run_here(tmp_path, "--resume", "one")
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert journal.read_bytes() == hostile_pickle(tmp_path)
    assert not (tmp_path / "was-run").exists()
