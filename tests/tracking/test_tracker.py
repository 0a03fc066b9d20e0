"""MLflow shows what the record holds, no more and no less, and a store that fails never stops a study."""

import json
import logging
import threading
from http.server import ThreadingHTTPServer

import optuna
import pytest
from mlflow import MlflowClient
from sqlalchemy import text
from support.calls import call_here
from support.manifests import make_manifest
from support.mlflow_runs import SilentServer, runs_of
from support.results import TEST

from study.config.plan import Plan
from study.other_process import OtherProcess
from study.results.metrics import EpochResult, Evaluation
from study.results.record import COPY, Record
from study.tracking.artifacts import trial_files
from study.tracking.client import connect, local_uri, study_url
from study.tracking.tracker import Tracker

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, SQLAlchemy and what they import

CLASSES = ["cat", "dog"]


def epoch(number: int) -> EpochResult:
    return EpochResult(number, train_loss=2.0 / number, epoch_s=3.0, images_per_s=10.0)


@pytest.fixture
def record(tmp_path, make_recipe):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    record = Record.create(tmp_path / "studies" / "one", make_manifest(train_images=8, git_commit="abc"))
    record.add([Plan(None, "baseline", make_recipe(), 0), Plan(None, "baseline", make_recipe(unfreeze_depth=2), 0)])
    yield record
    record.close()


def track(client, record, tmp_path):
    return Tracker(
        client, record, artifacts=tmp_path / "artifacts", samples=lambda plan: b"\x89PNG picture", call=call_here
    )


def run_a_trial(record, tracker, epochs=2):
    plan = record.next_trial()
    tracker.on_start(plan)
    record.facts(plan, {"device": "CPU", "trainable_parameters": 5})
    for number in range(1, epochs + 1):
        record.epoch(plan, epoch(number))
        tracker.on_change(plan)
    record.tested(plan, TEST)
    record.complete(plan)
    tracker.on_change(plan)
    return plan


def test_tracker_projects_a_trial_with_recipe_epochs_and_test(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    plan = run_a_trial(record, tracker)
    assert tracker.finish("FINISHED", {}, {}) == 0
    _, children = runs_of(client)
    run = children["0"]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == plan.short_title
    assert run.data.params == {key: str(value) for key, value in plan.recipe.to_dict().items()} | {"seed": "0"}
    assert run.data.metrics["test_accuracy"] == 7 / 8
    history = client.get_metric_history(run.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]
    assert {"images_per_s", "epoch_s"} <= run.data.metrics.keys()


def test_files_made_in_another_process_are_the_same(record, client, tmp_path):
    tracker = track(client, record, tmp_path)
    trial = record.trial(run_a_trial(record, tracker))
    tracker.finish("FINISHED", {}, {})
    here = trial_files(trial, CLASSES)
    assert {"learning_curve.png", "confusion_matrix.png", "classification_report.json"} <= here.keys()
    with OtherProcess() as call:
        assert call(trial_files, trial, CLASSES) == here


def test_experiment_names_the_columns_of_its_table(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    view = json.loads(client.get_experiment_by_name("pets").tags["mlflow.sharedViewState.study"])
    assert {"metrics.`val_accuracy`", "params.`lr`", "tags.`study.state`"} <= {*view["selectedColumns"]}


def test_older_experiment_gets_the_columns_of_its_table(client, record, tmp_path):
    experiment = client.create_experiment("pets", tags={"mlflow.note.content": "mine"})
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    tags = client.get_experiment(experiment).tags
    assert "mlflow.sharedViewState.study" in tags
    assert tags["mlflow.note.content"] == "mine"


def test_study_url_compares_the_trials_of_a_study(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    for _ in range(2):
        run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    parent, children = runs_of(client)
    url = study_url(client, "http://127.0.0.1:5000", record.name)
    assert url.startswith("http://127.0.0.1:5000/#/compare-runs?")
    assert all(run.info.run_id in url for run in children.values())
    assert parent.info.run_id not in url


def test_study_url_of_one_trial_is_the_table(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    assert study_url(client, "", record.name).endswith("/runs?viewStateShareKey=study")


@pytest.mark.parametrize("name", ["another", "it's"])
def test_study_url_of_an_unknown_study_is_none(client, name):
    assert study_url(client, "", name) is None


def test_tracker_tags_tell_study_stage_device_versions_and_fingerprints(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    tags = runs_of(client)[1]["0"].data.tags
    expected = {
        "study.name": "one", "study.stage": "baseline", "study.trial": "0", "study.device": "CPU",
        "study.state": "complete", "study.data_fingerprint": "d" * 16, "study.split_fingerprint": "s" * 16,
        "version.torch": "2", "mlflow.source.git.commit": "abc",
    }  # fmt: skip
    assert expected.items() <= tags.items()


def test_tracker_sends_every_metric_and_marks_nothing_learnt(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    plan = record.next_trial()
    record.tested(plan, Evaluation(1.0, [[6, 0], [2, 0]], [0] * 8))
    record.complete(plan)
    tracker.on_change(plan)
    tracker.finish("FINISHED", {}, {})
    run = runs_of(client)[1]["0"]
    sent = {name: run.data.metrics[f"test_{name}"] for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss")}
    assert sent == pytest.approx({"accuracy": 0.75, "balanced_accuracy": 0.5, "macro_f1": 3 / 7, "loss": 1.0})
    assert run.data.tags["study.learnt_nothing"] == "every image is predicted as cat"
    assert run.data.tags["study.largest_class"] == "cat (75.00%)"


def test_tracker_writes_the_artifacts_of_a_trial(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    run_id = runs_of(client)[1]["0"].info.run_id
    assert {file.path for file in client.list_artifacts(run_id)} == {
        "classification_report.json", "confusion_matrix.json", "confusion_matrix.png", "learning_curve.png",
        "samples.png",
    }  # fmt: skip
    (folder,) = (tmp_path / "artifacts").glob(f"**/{run_id}/artifacts")
    assert json.loads((folder / "confusion_matrix.json").read_text())["counts"] == TEST.confusion
    report = json.loads((folder / "classification_report.json").read_text())
    assert report["accuracy"] == 7 / 8
    assert report["cat"]["recall"] == 3 / 4
    assert (folder / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_tracker_names_the_data_set_as_input(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    (data,) = runs_of(client)[1]["0"].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("pets", "d" * 16)


def test_tracker_puts_trials_under_their_study(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {"comparison.csv": b"model"}, {"best": 0.5})
    parent, children = runs_of(client)
    assert set(children) == {"0", "1"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert (parent.info.run_name, parent.info.status) == ("one", "FINISHED")
    assert parent.data.metrics == {"best": 0.5}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["comparison.csv"]


def test_tracker_sends_nothing_twice(client, record, tmp_path):
    """A second tracker of the same record finds its runs and their epochs, as after a crash."""
    for _ in range(2):
        tracker = track(client, record, tmp_path)
        if record.trials()[0].state == "waiting":
            plan = run_a_trial(record, tracker)
        tracker.on_change(plan)
        tracker.finish("FINISHED", {}, {})
    _, children = runs_of(client)
    assert set(children) == {"0"}
    assert len(client.get_metric_history(children["0"].info.run_id, "train_loss")) == 2


def test_tracker_ends_what_was_interrupted_as_killed(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    tracker.on_start(record.next_trial())
    tracker.finish("KILLED", {}, {})
    parent, children = runs_of(client)
    assert (parent.info.status, children["0"].info.status) == ("KILLED", "KILLED")


def test_tracker_continues_the_runs_of_a_killed_study(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    plan = record.next_trial()
    record.epoch(plan, epoch(1))
    tracker.on_change(plan)
    tracker.finish("KILLED", {}, {})
    tracker = track(client, record, tmp_path)
    record.epoch(plan, epoch(2))
    record.tested(plan, TEST)
    record.complete(plan)
    tracker.on_change(plan)
    tracker.finish("FINISHED", {}, {}, "It is done.")
    parent, children = runs_of(client)
    assert (parent.info.status, children["0"].info.status) == ("FINISHED", "FINISHED")
    history = client.get_metric_history(children["0"].info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2]
    assert parent.data.tags["mlflow.note.content"].startswith("It is done.")


def test_tracker_deletes_a_run_that_was_made_twice(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    plan = run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    first = runs_of(client)[1]["0"]
    client.create_run(first.info.experiment_id, first.info.start_time + 5, first.data.tags)
    tracker = track(client, record, tmp_path)
    tracker.on_change(plan)
    tracker.finish("FINISHED", {}, {})
    assert runs_of(client)[1]["0"].info.run_id == first.info.run_id
    assert len(client.search_runs([first.info.experiment_id])) == 2


def test_tracker_builds_an_emptied_store_again_from_the_record(client, record, tmp_path, empty_store):
    tracker = track(client, record, tmp_path)
    plan = run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {"best_val_accuracy": 0.5})
    before = runs_of(client)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mlflow.db").write_bytes(empty_store.read_bytes())
    again = connect(local_uri(other), verbose=False)
    tracker = track(again, record, tmp_path)
    tracker.on_change(plan)
    tracker.finish("FINISHED", {}, {"best_val_accuracy": 0.5})
    after = runs_of(again)
    for then, now in ((before[0], after[0]), (before[1]["0"], after[1]["0"])):
        assert (now.data.metrics, now.data.params, now.info.run_name) == (
            then.data.metrics,
            then.data.params,
            then.info.run_name,
        )


def test_tracker_keeps_the_reason_of_a_failure(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    plan = record.next_trial()
    record.fail(plan, "train_loss: must stay finite")
    tracker.on_change(plan)
    tracker.finish("FINISHED", {}, {})
    run = runs_of(client)[1]["0"]
    assert (run.info.status, run.data.tags["study.reason"]) == ("FAILED", "train_loss: must stay finite")


def test_tracker_completes_a_run_that_a_crash_left_without_params(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    plan = run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {})
    _, children = runs_of(client)
    with client._tracking_client.store.ManagedSessionMaker() as session:
        session.execute(text("DELETE FROM params WHERE run_uuid = :run"), {"run": children["0"].info.run_id})
    client.update_run(children["0"].info.run_id, "RUNNING")
    tracker = track(client, record, tmp_path)
    tracker.on_change(plan)
    tracker.finish("FINISHED", {}, {})
    assert runs_of(client)[1]["0"].data.params["model"] == "resnet18"


def test_copy_of_a_study_gets_runs_of_its_own(client, record, tmp_path):
    first = track(client, record, tmp_path)
    run_a_trial(record, first)
    first.finish("FINISHED", {}, {})
    record.note(COPY, "c" * 32)
    second = track(client, record, tmp_path)
    second.on_change(record.trials()[0].plan)
    second.finish("FINISHED", {}, {})
    assert first.parent != second.parent


@pytest.mark.parametrize("moment", ["before the trial", "while its plot is drawn", "while its files are sent"])
def test_tracker_makes_no_directory_where_the_store_was_before(moment, client, record, tmp_path, monkeypatch):
    mlruns = tmp_path / "mlruns"
    mlruns.mkdir()

    def move(*_):
        if mlruns.exists():
            mlruns.rename(tmp_path / "moved")

    if moment == "while its files are sent":  # MLflow reads the run before it writes
        find = client.get_run
        monkeypatch.setattr(client, "get_run", lambda run: (find(run), move())[0])
    draws = moment == "while its plot is drawn"
    tracker = Tracker(
        client, record, artifacts=mlruns / "artifacts", samples=lambda plan: move() if draws else None, call=call_here
    )
    if moment == "before the trial":
        move()
    run_a_trial(record, tracker)
    assert tracker.finish("FINISHED", {}, {}) > 0
    assert (tmp_path / "moved").exists()
    assert not mlruns.exists()


def test_tracker_counts_the_runs_that_were_not_sent(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    (tmp_path / "mlflow.db").rename(tmp_path / "gone.db")
    (tmp_path / "mlflow.db").mkdir()
    client._tracking_client.store.engine.dispose()
    run_a_trial(record, tracker)
    assert tracker.finish("FINISHED", {}, {}) > 0
    assert record.trials()[0].state == "complete"


@pytest.mark.slow
def test_tracker_asks_a_silent_store_once(record, make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    record.add(Plan(None, "baseline", make_recipe(lr=0.1 + number), 0) for number in range(40))
    with ThreadingHTTPServer(("127.0.0.1", 0), SilentServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracker = track(MlflowClient(f"http://127.0.0.1:{server.server_port}"), record, tmp_path)
        asked_before = len(SilentServer.asked)
        while plan := record.next_trial():
            record.fail(plan, "not the point here")
            tracker.on_change(plan)
        assert tracker.finish("FINISHED", {}, {}) == 43
        assert len(SilentServer.asked) - asked_before < 20
        server.shutdown()


def test_tracker_takes_up_an_experiment_that_was_deleted(client, record, tmp_path):
    for trials in (1, 2):
        tracker = track(client, record, tmp_path)
        run_a_trial(record, tracker)
        assert tracker.finish("FINISHED", {}, {}) == 0
        parent, children = runs_of(client)
        assert (parent.info.status, len(children)) == ("FINISHED", trials)
        client.delete_experiment(parent.info.experiment_id)


def test_tracker_tags_the_parent_with_what_was_found(client, record, tmp_path):
    tracker = track(client, record, tmp_path)
    run_a_trial(record, tracker)
    tracker.finish("FINISHED", {}, {"difference_mean": 0.1}, "Found.", {"best.lr": "0.01"})
    parent, _ = runs_of(client)
    assert parent.data.tags["best.lr"] == "0.01"
    assert parent.data.metrics["difference_mean"] == 0.1
    assert parent.data.tags["mlflow.note.content"].startswith("Found. Open report.html")
