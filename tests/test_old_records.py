"""Studies that an earlier version recorded are read, rebuilt and finished by this one."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.commands import study_command
from support.mlflow_runs import open_store, runs_of

from study.models.classifier import build
from study.models.saved_model import ModelCard
from study.report.render import write_report
from study.results.record import Record
from study.training.run_trial import open_checkpoint

RECORDS = Path(__file__).parent / "records"
pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and of Optuna's plots


@pytest.fixture
def old_study(tmp_path):
    """Return a function that copies a recorded study into tmp_path/mlruns, and returns its directory."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(RECORDS / name, tmp_path / "mlruns" / "studies" / name))

    return copy


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("baseline", ["complete"] * 2),
        ("search", ["complete", "pruned", "complete", "complete", "pruned", *["complete"] * 4]),
        ("killed", ["complete", "running"]),
    ],
)
def test_old_journal_is_read(name, states):
    trials = Record.read(RECORDS / name).all_trials()
    assert [trial.state for trial in trials] == states


@pytest.mark.parametrize("name", ["baseline", "search", "killed"])
def test_old_study_gets_a_report(old_study, name):
    record = Record.read(old_study(name))
    assert record.trials()[0].plan.title in write_report(record, None).read_text(encoding="utf-8")


def test_old_checkpoint_is_restored():
    record = Record.read(RECORDS / "killed")
    trial = record.trials()[1]
    classifier = build("resnet18", classes=10, unfreeze_depth=0, pretrained=None, seed=trial.plan.seed)
    untrained = classifier.network.fc.weight.clone()
    checkpoint = open_checkpoint(record.checkpoints, record.manifest.uid, trial.plan)
    assert checkpoint.restore(classifier) == len(trial.epochs) == 1
    assert not torch.equal(classifier.network.fc.weight, untrained)


@pytest.mark.slow
def test_old_baseline_is_rebuilt_in_mlflow(old_study, run_here, tmp_path):
    record = Record.read(old_study("baseline"))
    done = run_here(tmp_path, "--resume", "baseline")
    assert done.returncode == 0, done.stderr
    _, runs = runs_of(open_store(tmp_path), "baseline")
    assert runs.keys() == {"0", "1"}
    for trial in record.trials():
        assert runs[trial.plan.key].data.metrics["test_accuracy"] == trial.test.accuracy


@pytest.mark.slow
def test_old_search_is_rebuilt_in_mlflow(old_study, run_here, tmp_path):
    directory = old_study("search")
    card = ModelCard.read(directory / "model" / "model.json")
    network = build("resnet18", classes=len(card.classes), unfreeze_depth=1, pretrained=None, seed=0).network
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, directory / "model" / "model.safetensors")  # in place of the trained weights
    done = run_here(tmp_path, "--resume", "search")
    assert done.returncode == 0, done.stderr
    assert "digits-resnet18 version 1" in done.stdout
    parent, runs = runs_of(open_store(tmp_path), "search")
    assert runs.keys() == {*"01234", *(f"final-{number}" for number in range(4))}
    assert parent.data.metrics["difference_mean"] == pytest.approx(1 / 6)


@pytest.mark.slow
def test_killed_old_search_is_finished(old_study, tmp_path):
    directory = old_study("killed")
    begun = Record.read(directory).trials()
    command = study_command("--resume", "killed")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    record = Record.read(directory)
    trials = record.trials()
    assert [trial.plan for trial in trials[:2]] == [trial.plan for trial in begun]
    assert trials[1].epochs[0] == begun[1].epochs[0]
    assert [trial.state for trial in record.all_trials()] == ["complete"] * 4
    assert runs_of(open_store(tmp_path), "killed")[1].keys() == {"0", "1", "2", "final-0"}
