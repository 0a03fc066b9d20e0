"""Finish a study: write its report, close its MLflow runs, register its model.

This module trains nothing. It takes all results from the record, so a resumed study gives the same result again.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from study.data.images import Dataset
from study.errors import StudyError, without_credentials
from study.models.saved_model import MODEL_DIRECTORY, find_model, kept_models, load_model
from study.other_process import Call
from study.report.render import write_report
from study.results.ledger import Looks, count_looks
from study.results.metrics import score
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.tracking.artifacts import comparison_files, search_files
from study.tracking.registry import Registration, log_model
from study.tracking.tracker import Tracker
from study.tuning.keep_model import unkept
from study.verdict.rerank import find_winner
from study.verdict.screen import probe_rows, probe_sentence
from study.verdict.trial_table import Row, compare, faster
from study.verdict.verdict import Verdict, stored_verdict, verdict_metrics
from study.verdict.wording import sentence

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """What a study that has ended has found, by its record alone."""

    trials: Sequence[TrialRecord]
    finals: Sequence[TrialRecord]
    """Refits of the re-ranking and of the verdict."""
    rows: Sequence[Row] = ()
    """Tested trials of a study without a search."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Importance of each field that the search varied, in [0, 1]."""
    verdict: Verdict | None = None
    """Verdict of a search; None if no verdict was reached."""
    looks: Looks | None = None
    """Openings of the study's test images until now, by all studies of its `mlruns` directory."""

    @property
    def succeeded(self) -> bool:
        """Whether all fixed trials are complete, or at least one trial of a search."""
        if self.rows:
            return all(trial.state == "complete" for trial in self.trials)
        return any(trial.state == "complete" for trial in self.trials)


@dataclass(frozen=True)
class StudyResult:
    """Result of a study that has ended: what it has found, and where all of it is."""

    directory: Path
    findings: Findings
    tracking_uri: str
    unsent: int = 0
    """Number of runs that could not be sent to MLflow; the record has them."""
    model: Path | None = None
    """Directory of the saved classifier of a search's best recipe, or of a baseline's trial with the best result on
    the test images; None if none is saved."""
    models: Sequence[Path] = ()
    """Directories of all saved classifiers."""
    example: Path | None = None
    """An image file of the test images; None if the images are no files."""
    registration: Registration | None = None
    """The model's registration in MLflow's registry; None if there is none."""


@dataclass(frozen=True)
class _ParentRun:
    """The content of a study's parent run in MLflow."""

    complete: bool
    found: str
    """Result of the study in one sentence, for the description of the run; "" if there is none."""
    files: Mapping[str, bytes]
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def has_ended(record: Record) -> bool:
    """Return whether a study has nothing left to run, judge or save."""
    trials = record.all_trials()
    if not all(trial.finished for trial in trials):
        return False
    if record.space:
        return record.noted("verdict") is not None and (record.directory / MODEL_DIRECTORY).is_dir()
    return len(trials) == len(record.manifest.design.recipes) and not unkept(record)


def read_findings(record: Record) -> Findings:
    """Return what a study has found that has run all its trials."""
    trials = record.trials()
    return Findings(
        trials,
        finals=[*record.reranks(), *record.finals()],
        rows=compare(trials, record.manifest.classes),
        importances=record.noted("importances") or {},
        verdict=stored_verdict(record),
        looks=count_looks(record),
    )


def conclude(findings: Findings, record: Record, tracker: Tracker, dataset: Dataset | None) -> StudyResult:
    """Write the report, close the study's MLflow runs, register its model, and return the result.

    Args:
        findings: what the study has found.
        record: record of a study that has run all its trials.
        tracker: tracker of the study's MLflow runs; finished here.
        dataset: images of the study; None if they no longer exist.

    Raises:
        RecordError: the report cannot be written.
    """
    shutil.rmtree(record.checkpoints, ignore_errors=True)
    run = _parent_run(findings, record, tracker.call)
    page = write_report(record, dataset)
    files = {**run.files, page.name: page.read_bytes()}
    status = "FINISHED" if run.complete else "FAILED"
    unsent = tracker.finish(status, files, run.metrics, run.found, run.tags)
    kept = kept_models(record.directory)
    saved = find_model(record.directory) if kept else None
    return StudyResult(
        directory=record.directory,
        findings=findings,
        tracking_uri=without_credentials(tracker.client.tracking_uri),
        unsent=unsent,
        model=saved,
        models=kept,
        example=_example(dataset),
        registration=_register(saved, tracker, dataset) if saved and record.space else None,
    )


def _parent_run(findings: Findings, record: Record, call: Call) -> _ParentRun:
    if record.manifest.design.stage == "probe":
        probes = probe_rows(record)
        return _ParentRun(bool(probes), probe_sentence(probes, record.manifest.design.metric), {})
    if not record.space:
        rows = findings.rows
        return _ParentRun(bool(rows), faster(rows) or "", call(comparison_files, rows))
    trials, verdict, metric = findings.trials, findings.verdict, record.manifest.design.metric
    complete, winner = [trial.value for trial in trials if trial.value is not None], find_winner(record)
    return _ParentRun(
        complete=bool(complete),
        found=sentence(verdict),
        files=call(search_files, trials, findings.importances, verdict, record.manifest.classes),
        metrics=({f"best_val_{metric}": score(metric, max(complete))} if complete else {})
        | (verdict_metrics(verdict) if verdict else {}),
        tags={f"best.{name}": str(value) for name, value in winner.plan.recipe.to_dict().items()} if winner else {},
    )


def _example(dataset: Dataset | None) -> Path | None:
    """Return a file of the test images."""
    return next((row.path for row in dataset.rows if row.split == "test"), None) if dataset else None


def _register(model: Path, tracker: Tracker, dataset: Dataset | None) -> Registration | None:
    """Register a saved classifier in MLflow's registry; return None if that fails, and let --resume try again."""
    try:
        saved = load_model(model)
        width, height = saved.card.stored_size
        example = dataset.test.pixels[:2] if dataset else np.zeros((2, 3, height, width), np.uint8)
        return log_model(tracker.client, tracker.parent, saved, example) if tracker.parent else None
    except StudyError as error:
        _logger.warning(str(error))
        return None
