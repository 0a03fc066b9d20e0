"""The command as a user types it: what it prints, what it leaves behind, and how it ends."""

import os
import signal
import subprocess
from types import SimpleNamespace

import optuna
import pytest
import torch
from PIL import Image
from processes import family, wait_until_gone
from safetensors.torch import save_file
from support.commands import study_command
from support.images import write_image_folder
from support.mlflow_runs import open_store, runs_of

from study.models.classifier import build
from study.results.record import Record

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, which reads the runs back

QUICK = ["--weights", "none", "--image-size", "32", "--epochs", "1"]


@pytest.fixture
def study(tmp_path):
    """Run a command in an empty directory of its own."""
    room = tmp_path / "room"
    room.mkdir()

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            study_command(*arguments), cwd=room, capture_output=True, text=True, env={**os.environ, **environment}
        )

    run.room = room
    return run


@pytest.mark.slow
def test_baseline_trains_tests_records_and_tracks(study, image_folder):
    grey = image_folder / "train" / "cat" / "0.png"  # and of another size than the others
    Image.open(grey).convert("L").resize((40, 50)).save(grey)
    done = study("--baseline", "resnet18", "resnet34", "--data", image_folder, "--name", "one", *QUICK)
    assert done.returncode == 0, done.stderr
    for expected in ("16 training and 8 test images", "trains fastest", "hardest pair", "study.ui", "loss of epoch 1"):
        assert expected in done.stdout
    assert "Configuration for experiment" not in done.stdout  # Ray's chatter
    assert done.stderr == ""

    journal = study.room / "mlruns" / "studies" / "one" / "journal.log"
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    recorded = optuna.load_study(study_name="one", storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in recorded.trials] == ["COMPLETE", "COMPLETE"]
    client = open_store(study.room)
    parent, children = runs_of(client)
    assert parent.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "comparison.csv",
        "comparison.png",
        "report.html",
    }
    for trial in recorded.trials:
        run = children[str(trial.number)]
        assert run.data.metrics["test_accuracy"] == trial.value
        assert run.data.params["model"] == trial.user_attrs["recipe"]["model"]
        assert run.info.status == "FINISHED"


@pytest.fixture
def broken_weights(tmp_path):
    """A file of resnet18's weights for two classes, of which the first layer's are not a number."""
    network = build("resnet18", classes=2, unfreeze_depth=0, pretrained=None, seed=0).network
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], float("nan"))
    path = tmp_path / "broken.safetensors"
    save_file(state, path)
    return path


@pytest.mark.slow
def test_baseline_whose_trials_all_fail_exits_1(study, image_folder, broken_weights):
    flags = ["--data", image_folder, *QUICK, "--weights", broken_weights]
    done = study("--baseline", "resnet18", *flags, "--name", "one")
    assert done.returncode == 1
    assert "train_loss: must stay finite, but got nan in epoch 1" in done.stdout
    parent, children = runs_of(open_store(study.room))
    assert (parent.info.status, children["0"].info.status) == ("FAILED", "FAILED")
    assert "train_loss" in children["0"].data.tags["study.reason"]


SPACE = """
model = "resnet18"
[space]
lr = { type = "float", low = 1e-5, high = 1e-2, log = true }
[fixed]
image_size = 32
batch_size = 8
epochs = 2
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Search two spaces with one command; return the directory, what the command printed, and its studies' records."""
    room = tmp_path_factory.mktemp("searched")
    (room / "first.toml").write_text(f"{SPACE}[budget]\ntrials = 4\n")
    models = 'model = { type = "categorical", choices = ["resnet34", "mobilenet_v3_small"] }\n'
    another = SPACE.replace('model = "resnet18"\n', "").replace("[space]\n", f"[space]\n{models}")
    (room / "second.toml").write_text(f'{another}[budget]\ntrials = 2\n[pruner]\nname = "none"\n')
    flags = ["--data", write_image_folder(room / "pets"), "--weights", "none", "--image-size", "32"]
    command = study_command("--search", "first.toml", "second.toml", *flags, "--epochs", "2", "--repeats", "2")
    environment = {**os.environ, "XDG_CACHE_HOME": str(room / "cache")}
    done = subprocess.run(command, cwd=room, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    records = [Record.read(path) for path in sorted((room / "mlruns" / "studies").iterdir())]
    return SimpleNamespace(room=room, output=done.stdout, records=records)


@pytest.mark.slow
def test_search_makes_each_space_a_study(searched):
    first, second = searched.records
    assert [record.directory.name.partition("-")[0] for record in (first, second)] == ["first", "second"]
    assert [trial.state for trial in second.trials()] == ["complete", "complete"]
    assert all({trial.state for trial in record.finals()} == {"complete"} for record in (first, second))


@pytest.mark.slow
def test_search_prints_images_space_trials_and_verdict(searched):
    for expected in ("14 training, 2 validation and 8 test", "lr 1e-05 … 0.01 (log)", "verdict", "Best trials by val"):
        assert expected in searched.output


@pytest.mark.slow
def test_verdict_is_printed_before_the_report_is_written(searched):
    assert searched.output.index("\nverdict  ") < searched.output.index("now      writing the report")


@pytest.mark.slow
def test_search_over_models_probes_each_of_them_first(searched):
    first, second = searched.records
    assert first.screens() == []
    assert [trial.plan.recipe.model for trial in second.screens()] == ["resnet34", "mobilenet_v3_small"]
    assert all(trial.facts["predict_images_per_s"] > 0 for trial in second.screens())
    assert "Linear probes" in (second.directory / "report.html").read_text()


@pytest.mark.slow
def test_searches_of_one_command_are_compared_at_the_end(searched):
    page = searched.records[0].directory / "comparison.html"
    assert page.is_file()
    assert searched.output.rstrip().endswith(str(page)) and "the highest test accuracy is" in searched.output


@pytest.mark.slow
def test_search_tracks_its_trials_and_its_verdict(searched):
    client = open_store(searched.room)
    parent, children = runs_of(client, searched.records[0].directory.name)
    finals = [run for run in children.values() if run.data.tags["study.stage"] == "final"]
    searching = {key: run for key, run in children.items() if run.data.tags["study.stage"] == "search"}
    assert searching.keys() == {"0", "1", "2", "3"}
    assert searching["0"].data.params["lr"] == "0.001"
    assert all(
        "val_accuracy" in run.data.metrics and "test_accuracy" not in run.data.metrics for run in searching.values()
    )
    assert all("test_accuracy" in run.data.metrics for run in finals)
    assert len({run.data.tags["study.split_fingerprint"] for run in children.values()}) == 1
    assert all(run.info.status == "FINISHED" for run in children.values())
    verdict, _ = (line.removeprefix("verdict  ") for line in searched.output.splitlines() if line.startswith("verdict"))
    assert parent.data.tags["mlflow.note.content"].startswith(verdict)


@pytest.mark.slow
def test_search_logs_files_of_the_study_and_its_trials(searched):
    client = open_store(searched.room)
    parent, children = runs_of(client, searched.records[0].directory.name)
    files = {key: {file.path for file in client.list_artifacts(run.info.run_id)} for key, run in children.items()}
    assert {"verdict.txt", "trials.csv", "importances.json"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    assert all("confusion_matrix.png" in files[str(number)] for number in range(4))


@pytest.mark.slow
def test_search_keeps_and_registers_its_model_alone(searched):
    directory = searched.records[0].directory
    assert {file.name for file in (directory / "model").iterdir()} == {"model.json", "model.safetensors"}
    assert not (directory / "checkpoints").exists()
    client = open_store(searched.room)
    parent, _ = runs_of(client, directory.name)
    assert client.get_model_version_by_alias("pets-resnet18", "champion").run_id == parent.info.run_id


@pytest.mark.slow
def test_reproduce_trains_a_searchs_model_again(searched):
    command = study_command("--reproduce", searched.records[0].directory.name)
    again = subprocess.run(command, cwd=searched.room, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("epoch 1  loss ")
    assert again.stdout.splitlines()[-1] == "verdict  reproduced"


@pytest.mark.slow
def test_time_budget_ends_the_search_before_the_verdict(study, image_folder):
    (study.room / "small.toml").write_text(SPACE)
    flags = ["--data", image_folder, *QUICK, "--repeats", "1", "--pruner", "none", "--name", "one"]
    with subprocess.Popen(
        study_command("--search", "small.toml", *flags, "--trials", "100000"),
        cwd=study.room,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("#1 ") and "complete" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    done = study("--resume", "one", "--time-budget", "1s")  # which is spent: only what had been begun is still run
    assert done.returncode == 0, done.stderr
    record = Record.read(study.room / "mlruns" / "studies" / "one")
    assert 2 <= len(record.trials()) < 100000
    assert all(trial.state == "complete" for trial in record.all_trials())
    assert record.finals()
    assert any(line.startswith("verdict  ") for line in done.stdout.splitlines())


@pytest.mark.slow
def test_search_whose_trials_all_fail_exits_1(study, image_folder, broken_weights):
    (study.room / "small.toml").write_text(SPACE)
    flags = ["--data", image_folder, "--weights", broken_weights, "--trials", "2", "--epochs", "1"]
    done = study("--search", "small.toml", *flags, "--image-size", "32", "--name", "one")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed ")]
    assert len(failed) == 2
    assert all("train_loss: must stay finite, but got nan in epoch 1" in line for line in failed)
    assert "0 complete, 0 pruned, 2 failed" in done.stdout
    assert f"weights  resnet18: {broken_weights}, last layer fc is the file's own" in done.stdout
    assert "device   CPU, " in done.stdout or torch.cuda.is_available()
    parent, children = runs_of(open_store(study.room))
    assert {run.info.status for run in (parent, *children.values())} == {"FAILED"}
    assert all("train_loss" in run.data.tags["study.reason"] for run in children.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "resnet81"], "Did you mean 'resnet18'?"),
        (["--search", "resnet18", "--trials", "0"], "--trials: must be at least 1, but got 0."),
        (["--search", "resnet18", "--time-budget", "soon"], "--time-budget: must be a duration such as"),
        (["--search", "resnet18", "--pruner", "ash"], "--pruner: unknown choice 'ash'. Did you mean 'asha'?"),
        (["--search", "resnet18", "--repeats", "0"], "--repeats: must be at least 1, but got 0."),
        (["--search", "resnet18", "--repeats", "few"], "argument --repeats: invalid repeats value: 'few'"),
        (["--search", "resnet18", "--rerank", "1"], "--rerank: must be 0 or at least 2, but got 1."),
        (
            ["--search", "resnet18", "vgg16", "--name", "both"],
            "--name: must be left out when --search has several spaces, but got 2 spaces.",
        ),
        (
            ["--search", "resnet18", "a/resnet18.toml"],
            "--search: spaces must have different names, but got 'resnet18'",
        ),
        (["--search", "resnet18", "--as-written"], "--as-written: needs --baseline."),
        (["--baseline", "--trials", "3"], "--trials: needs --search."),
        (["--baseline", "--repeats", "0"], "--repeats: needs --search."),
        (["--baseline", "--rerank", "2"], "--rerank: needs --search."),
        (["--baseline", "--prior", "auto"], "--prior: needs --search."),
        (["--baseline", "--search", "vgg16"], "not allowed with"),
        (["--models", "--search", "vgg16"], "not allowed with"),
        (["--models", "--epochs", "3"], "--models: takes no other flags, but got --epochs."),
        (["--baseline", "--weights", "no.pth"], "--weights: unknown weights, file or directory 'no.pth'."),
        (["--reproduce", "latest"], "mlruns: must hold a study, but holds none."),
        (["--resume", "latest"], "mlruns: must hold a study, but holds none."),
        (["--resume", "latest", "--name", "one"], "--name: must be left out with --resume"),
        (["--baseline", "vgg61"], "unknown model 'vgg61'. Did you mean 'vgg16'?"),
        (["--baseline", "--fraction", "1.5"], "--fraction: must be at most 1, but got 1.5."),
        (["--baseline", "--name", "../up"], "--name: must be 1 to 64 letters"),
        (["--baseline", "--epochs", "0"], "--epochs: must be at least 1, but got 0."),
        (["--baseline", "resnet34", "--as-written"], "--as-written: models must be among vgg16 and resnet18"),
        (["--baseline", "--data", "cifar01", "--weights", "none"], "Did you mean 'cifar10'?"),
        (["--baseline", "--data", "no/such/folder"], "unknown data set, folder or file 'no/such/folder'"),
        (["--baselin"], "--baseline"),
        (["--verbose"], "one of --baseline, --search, --probe, --resume, --reproduce, --models must be given"),
    ],
)
def test_usage_error_exits_2_and_leaves_nothing(study, arguments, message):
    (study.room / "a").mkdir()
    (study.room / "a" / "resnet18.toml").write_text(SPACE)
    done = study(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(study.room.glob("mlruns/studies/*"))


def test_weights_file_that_hides_code_is_refused(run_here, image_folder, tmp_path):
    marker = tmp_path / "ran"
    hostile = tmp_path / "weights.pth"
    hostile.write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    done = run_here(tmp_path, "--baseline", "resnet18", "--data", image_folder, "--weights", hostile)
    assert done.returncode == 1
    assert "weights.pth: must" in done.stderr
    assert not marker.exists()
    assert not list(tmp_path.glob("mlruns/studies/*"))


@pytest.mark.slow
def test_a_broken_image_is_named(run_here, image_folder, tmp_path):
    broken = image_folder / "train" / "cat" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    done = run_here(tmp_path, "--baseline", "resnet18", "--data", image_folder, *QUICK)
    assert done.returncode == 1
    named, way_out = done.stderr.splitlines()
    assert str(broken) in named
    assert "--skip-broken" in way_out


@pytest.mark.slow
def test_silent_tracking_server_stops_the_study_before_it_begins(run_here, image_folder, tmp_path):
    uri = "http://127.0.0.1:9"  # the discard port: closed
    done = run_here(tmp_path, "--baseline", "resnet18", "--data", image_folder, "--tracking-uri", uri, *QUICK)
    assert done.returncode == 1
    assert f"--tracking-uri {uri}: must be a store that answers" in done.stderr
    assert not list(tmp_path.glob("mlruns/studies/*"))


def test_a_directory_that_cannot_be_written_is_named(run_here, image_folder, tmp_path):
    (tmp_path / "mlruns").write_text("in the way")
    done = run_here(tmp_path, "--baseline", "resnet18", "--data", image_folder, *QUICK)
    assert done.returncode == 1
    assert f"{tmp_path / 'mlruns'}: must be writable" in done.stderr


@pytest.mark.slow
def test_no_network_and_no_images_names_every_way_round(run_here, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    done = run_here(tmp_path, "--baseline", "resnet18", "--data-dir", tmp_path / "data", "--weights", "none")
    assert done.returncode == 1
    for expected in ("cifar-10-python.tar.gz", str(tmp_path / "data"), "--data", "--demo"):
        assert expected in done.stderr


@pytest.mark.slow
def test_no_network_and_no_weights_names_every_way_round(run_here, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    done = run_here(tmp_path, "--baseline", "resnet18", "--data", image_folder)
    assert done.returncode == 1
    for expected in ("resnet18-", str(tmp_path / "torch"), "--weights none", "--weights FILE", "--demo"):
        assert expected in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_interruption_exits_130_and_leaves_no_process(study, image_folder, name):
    arguments = ["--baseline", "resnet18", "--data", image_folder, "--name", "one", *QUICK, "--epochs", "100000"]
    with subprocess.Popen(
        study_command(*arguments), cwd=study.room, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if "epoch 2/" in line:
                break
        ours = family(process.pid)
        assert len(ours) > 1
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    goes_on = "study: interrupted; the record is kept. To continue: python -m study.run --resume one\n"
    assert errors == f"study: ending …\n{goes_on}"
    assert wait_until_gone(ours, 20) == []
    parent, children = runs_of(open_store(study.room))
    assert (parent.info.status, children["0"].info.status) == ("KILLED", "KILLED")


@pytest.mark.slow
def test_interruption_before_the_record_names_no_study(study, image_folder):
    arguments = ["--baseline", "resnet18", "--data", image_folder, "--name", "one", *QUICK]
    with subprocess.Popen(
        study_command(*arguments), cwd=study.room, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("weights"):  # Ray is about to be started
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "study: ending …\nstudy: interrupted.\n")
    assert not list(study.room.glob("mlruns/studies/*"))


@pytest.mark.parametrize("arguments", [["--baseline"], ["--search", "resnet18"]])
def test_a_name_that_is_taken_is_told_before_anything_slow(study, arguments):
    (study.room / "mlruns" / "studies" / "one").mkdir(parents=True)
    nowhere = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(study.room)}
    done = study(*arguments, "--name", "one", **nowhere)
    assert done.returncode == 1
    assert "a study named 'one' exists. Choose another --name, or --resume it." in done.stderr


@pytest.mark.slow
def test_models_lists_what_can_be_studied(run_here, tmp_path):
    done = run_here(tmp_path, "--models")
    assert done.returncode == 0, done.stderr
    assert "resnet" in done.stdout and "--models PATTERN" in done.stdout
