"""What a study ends in, told from its record alone: its report, the end of its MLflow runs, its result.

So it is the same after the session that ran the last trial and whenever a study that has ended is taken up again.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from study.data.images import Dataset
from study.errors import StudyError
from study.models.saved_model import MODEL_DIRECTORY, load_model
from study.report.render import write_report
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.results.trial_table import Row, compare, faster
from study.results.verdict import Verdict, choose, recall_verdict, verdict_metrics
from study.results.wording import sentence
from study.tracking.artifacts import comparison_files, search_files
from study.tracking.client import without_credentials
from study.tracking.registry import Registration, log_model
from study.tracking.tracker import Tracker

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyResult:
    """A study that has ended."""

    directory: Path
    tracking_uri: str
    trials: Sequence[TrialRecord]
    finals: Sequence[TrialRecord]
    """The verdict's trials."""
    rows: Sequence[Row]
    """A baseline's tested trials side by side."""
    importances: Mapping[str, float]
    """Of the fields that a search varied."""
    verdict: Verdict | None
    """Of a search; None where it had nothing to choose from."""
    unsent: int
    """Runs that MLflow could not be given; the record has them."""
    model: Path | None = None
    """Where a search's best recipe, trained, is kept; None where nothing is."""
    registration: Registration | None = None
    """What became of it in MLflow's registry; None where that does not answer."""

    @property
    def succeeded(self) -> bool:
        """Whether it has what it was run for: each trial of a baseline, or a verdict, or at least its own best."""
        if self.rows:
            return all(trial.state == "complete" for trial in self.trials)
        return any(trial.state == "complete" for trial in self.trials)


@dataclass(frozen=True)
class _Findings:
    """What the run of a study as a whole is to show."""

    complete: bool
    found: str
    files: Mapping[str, bytes]
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def has_ended(record: Record) -> bool:
    """Tell whether a study has nothing left to run, to judge or to keep."""
    trials = record.all_trials()
    if not all(trial.finished for trial in trials):
        return False
    if record.space:
        return record.noted("verdict") is not None and (record.directory / MODEL_DIRECTORY).is_dir()
    return len(trials) == len(record.manifest["recipes"])


def conclude(record: Record, tracker: Tracker, dataset: Dataset | None) -> StudyResult:
    """Write the report, end the study's run, offer its model to the registry, and return what was found.

    Args:
        record: of a study that has run all its trials.
        tracker: of its runs; finished here.
        dataset: its images; None where they are not there any more.

    Raises:
        RecordError: the report cannot be written.
    """
    shutil.rmtree(record.checkpoints, ignore_errors=True)
    trials, classes = record.trials(), record.manifest["classes"]
    importances, verdict = record.noted("importances") or {}, recall_verdict(record)
    rows: list[Row] = []
    if record.space:
        found = _findings(trials, importances, verdict, classes)
    else:
        rows = compare(trials, classes)
        found = _Findings(bool(rows), faster(rows) or "", comparison_files(rows))
    page = write_report(record, dataset)
    files = {**found.files, page.name: page.read_bytes()}
    unsent = tracker.finish("FINISHED" if found.complete else "FAILED", files, found.metrics, found.found, found.tags)
    model = record.directory / MODEL_DIRECTORY
    kept = model if model.is_dir() else None
    return StudyResult(
        directory=record.directory,
        tracking_uri=without_credentials(tracker.client.tracking_uri),
        trials=trials,
        finals=record.finals(),
        rows=rows,
        importances=importances,
        verdict=verdict,
        unsent=unsent,
        model=kept,
        registration=_register(kept, tracker, dataset) if kept else None,
    )


def _findings(
    trials: Sequence[TrialRecord], importances: Mapping[str, float], verdict: Verdict | None, classes: Sequence[str]
) -> _Findings:
    """Return what a search has found."""
    complete = [trial.value for trial in trials if trial.value is not None]
    winner = choose(trials)
    return _Findings(
        complete=bool(complete),
        found=sentence(verdict),
        files=search_files(trials, importances, verdict, classes),
        metrics=({"best_val_accuracy": max(complete)} if complete else {})
        | (verdict_metrics(verdict) if verdict else {}),
        tags={f"best.{name}": str(value) for name, value in winner.plan.recipe.to_dict().items()} if winner else {},
    )


def _register(model: Path, tracker: Tracker, dataset: Dataset | None) -> Registration | None:
    """Offer a kept classifier to MLflow's registry; None where that cannot be had, which --resume makes up for."""
    try:
        saved = load_model(model)
        width, height = saved.card.stored_size
        example = dataset.test.pixels[:2] if dataset else np.zeros((2, 3, height, width), np.uint8)
        return log_model(tracker.client, tracker.parent, saved, example) if tracker.parent else None
    except StudyError as error:
        _logger.warning(str(error))
        return None
