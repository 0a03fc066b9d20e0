"""Check that a study is exact: journal, MLflow, report and files agree, and each holds every trial exactly once."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import optuna

from study.models.saved_model import MODEL_DIRECTORY, load_model
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.tracking.client import connect, local_uri
from study.tracking.tracker import STATUS
from study.verdict.judge import choose

METRICS = ("train_loss", "val_loss", "val_accuracy", "epoch_s", "images_per_s")
"""Metrics of each epoch, as MLflow names them."""


def find_faults(room: Path, name: str, *, trials: int, repeats: int, uri: str | None = None) -> list[str]:
    """Return the faults of a study that has ended, one sentence each; none if the study is exact.

    Args:
        room: directory in which the study ran.
        name: name of the study.
        trials: number of trials that the search must have.
        repeats: number of seeds of the verdict.
        uri: MLflow's store; None for the room's own.
    """
    record = Record.read(room / "mlruns" / "studies" / name)
    ended = record.all_trials()
    return [
        *_faults_of_journal(record, trials=trials, repeats=repeats),
        *_faults_of_mlflow(record, ended, uri or local_uri(room / "mlruns")),
        *_faults_of_report(record, ended),
        *_faults_of_files(record, ended),
    ]


def results_of(record: Record) -> list[object]:
    """Return all results of a study except times; two runs with the same seed must have equal results."""

    def of_trial(trial: TrialRecord) -> object:
        kept = ("epoch", "train_loss", "val_loss", "val_confusion")
        epochs = [{key: asdict(result)[key] for key in kept} for result in trial.epochs]
        return (trial.plan, trial.state, trial.value, trial.reason, epochs, trial.test)

    return [
        *map(of_trial, record.all_trials()),
        {key: value for key, value in (record.noted("verdict") or {}).items() if key != "looks"},  # restarts count
        record.noted("importances"),
    ]


def _faults_of_journal(record: Record, *, trials: int, repeats: int) -> Iterator[str]:
    if record.noted("verdict") is None:
        yield "journal: there is no verdict"
    found = record.trials()
    best = choose(found)
    assert best
    refitted = 1 if best.plan.recipe == found[0].plan.recipe else 2  # the baseline itself may be the best
    path = record.directory / "journal.log"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    for name, ended, count in (
        (record.name, found, trials),
        (f"{record.name} final", record.finals(), refitted * repeats),
    ):
        numbers = [trial.plan.number for trial in ended]
        if numbers != list(range(count)):
            yield f"journal: {name} must have the trials 0 to {count - 1}, but has {numbers}"
        if [trial.number for trial in optuna.load_study(study_name=name, storage=storage).trials] != numbers:
            yield f"journal: Optuna reads other trials of {name} than the record"
        for trial in ended:
            if not trial.finished:
                yield f"journal: trial {trial.plan.key} must have ended, but is {trial.state}"
            if trial.state == "failed":
                yield f"journal: trial {trial.plan.key} failed: {trial.reason}"
            epochs = [result.epoch for result in trial.epochs]
            wanted = trial.plan.recipe.epochs if trial.state == "complete" else len(epochs)
            if epochs != list(range(1, wanted + 1)):
                yield f"journal: trial {trial.plan.key} must have the epochs 1 to {wanted}, but has {epochs}"


def _faults_of_mlflow(record: Record, ended: list[TrialRecord], uri: str) -> Iterator[str]:
    client = connect(uri, verbose=False)
    uid = record.manifest.uid
    experiment = client.get_experiment_by_name(record.manifest.data)
    runs = client.search_runs([experiment.experiment_id], f"tags.`study.uid` = '{uid}'", max_results=5000)
    times = Counter(run.data.tags.get("study.trial", "parent") for run in runs)
    if times != Counter(["parent", *(trial.plan.key for trial in ended)]):
        yield f"MLflow: every trial must have one run, but there are {dict(times)}"
    by_key = {run.data.tags.get("study.trial", "parent"): run for run in runs}
    for trial in ended:
        run = by_key.get(trial.plan.key)
        if run is None:
            continue
        place = f"MLflow: trial {trial.plan.key}"
        if (run.info.status, run.data.tags.get("study.state")) != (STATUS[trial.state], trial.state):
            yield f"{place} must be {trial.state}, but is {run.info.status}, {run.data.tags.get('study.state')}"
        params = {key: str(value) for key, value in {**trial.plan.recipe.to_dict(), "seed": trial.plan.seed}.items()}
        if run.data.params != params:
            yield f"{place} must have the recipe {params}, but has {run.data.params}"
        for name in METRICS:
            sent = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
            had = [(result.epoch, getattr(result, name)) for result in trial.epochs]
            if sorted(sent) != [(epoch, value) for epoch, value in had if value is not None]:
                yield f"{place} must have {name} {had}, but has {sent}"
        if trial.test and run.data.metrics.get("test_accuracy") != trial.value:
            yield f"{place} must have test_accuracy {trial.value}, but has {run.data.metrics.get('test_accuracy')}"
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        if missing := {"confusion_matrix.png", "confusion_matrix.json", "learning_curve.png", "samples.png"} - files:
            yield f"{place} lacks {sorted(missing)}"
    if by_key["parent"].info.status != "FINISHED":
        yield f"MLflow: the study's run must be FINISHED, but is {by_key['parent'].info.status}"
    versions = [v for v in client.search_model_versions() if v.tags.get("study.uid") == uid]
    models = client.search_logged_models([experiment.experiment_id], f"tags.`study.uid` = '{uid}'")
    if (len(versions), len(models)) != (1, 1):
        yield f"MLflow: must have 1 model and 1 version, but has {len(models)} and {len(versions)}"


def _faults_of_report(record: Record, ended: list[TrialRecord]) -> Iterator[str]:
    page = (record.directory / "report.html").read_text()
    table = page.partition(">All trials</h")[2].partition("<tbody>")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.split(r"<tr[^>]*>", table)[1:]]
    shown = [(row[0], row[3], row[4], row[5], row[7], row[8]) for row in rows]
    wanted = [
        (
            f"#{trial.plan.key}",
            f"{trial.plan.recipe.lr:.3g}",
            str(trial.plan.recipe.batch_size),
            trial.state,
            "–" if trial.val_accuracy is None else f"{100 * trial.val_accuracy:.2f}",
            "–" if trial.test is None else f"{100 * trial.test.accuracy:.2f}",
        )
        for trial in ended
    ]
    if shown != wanted:
        yield f"report: table must have the rows {wanted}, but has {shown}"


def _faults_of_files(record: Record, ended: list[TrialRecord]) -> Iterator[str]:
    studies = record.directory.parent
    if left := [path.name for path in studies.glob(".*")]:
        yield f"files: {studies.name}/ must have no hidden files, but has {left}"
    known = {"journal.log", "lock", "report.html", MODEL_DIRECTORY}
    if left := {path.name for path in record.directory.iterdir()} - known:
        yield f"files: {record.name}/ must have no other files than {sorted(known)}, but has {sorted(left)}"
    if not (record.directory / MODEL_DIRECTORY).is_dir():
        yield "files: the model's directory is missing"
        return
    card = load_model(record.directory / MODEL_DIRECTORY).card
    (refit,) = (trial for trial in ended if trial.plan.key == card.trial)
    if card.confusion != refit.test.confusion or card.recipe != refit.plan.recipe:
        yield f"files: the saved model must equal trial {card.trial}, but differs"
