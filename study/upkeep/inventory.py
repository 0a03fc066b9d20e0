"""List the studies of a directory: kind, data, state, accuracies, size on disk, and when each changed last."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from study.api.handle import state_of
from study.config.paths import list_journals
from study.errors import StudyError
from study.formatting import format_bytes, format_duration, format_table
from study.results.metrics import NAMES, format_metric
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.rerank import find_winner
from study.verdict.screen import rank_probes
from study.verdict.verdict import Side, stored_verdict


@dataclass(frozen=True)
class Entry:
    """One study, as the table shows it."""

    name: str
    kind: str
    """search, probe, baseline or as-written; "" if the record cannot be read."""
    data: str
    state: str
    """complete, failed, running, interrupted, or why the record cannot be read."""
    best: str
    """The metric of a search's best trial, or of the best probe, on the validation images, with its name unless it is
    accuracy; "" if there is none."""
    test: str
    """Mean metric on the test images of the recipe that a search answers with, named as in `best`, or test accuracy of
    each model of a baseline; "" if there is none."""
    size_bytes: int
    age_s: float
    """Seconds since the record changed last."""


def list_entries(mlruns: Path) -> list[Entry]:
    """Return an entry for each study, the one that changed last first."""
    return [describe(journal.parent) for journal in list_journals(mlruns)]


def describe(directory: Path) -> Entry:
    """Return the entry of one study, also if its record cannot be read."""
    size, age = size_of(directory), max(0.0, time.time() - (directory / "journal.log").stat().st_mtime)
    try:
        record = Record.read(directory)
        manifest = record.manifest
        best, test = _results(record)
        return Entry(directory.name, manifest.design.stage, manifest.data, state_of(record), best, test, size, age)
    except StudyError:
        return Entry(directory.name, "", "", "unreadable", "", "", size, age)


def format_entries(entries: Sequence[Entry]) -> str:
    """Return the table of studies."""
    rows = [("study", "kind", "data", "state", "best (val)", "test", "size", "changed")]
    rows += [
        (
            entry.name,
            entry.kind,
            entry.data,
            entry.state,
            entry.best,
            entry.test,
            format_bytes(entry.size_bytes),
            f"{format_duration(entry.age_s)} ago",
        )
        for entry in entries
    ]
    return format_table(rows)


def size_of(directory: Path) -> int:
    """Return the size of all files in and below a directory in bytes; 0 if it does not exist."""
    size = 0
    for path in directory.rglob("*"):
        try:
            size += path.lstat().st_size if not path.is_dir() else 0
        except OSError:  # removed just now
            continue
    return size


def _results(record: Record) -> tuple[str, str]:
    design, trials = record.manifest.design, record.trials()
    if not design.validates:
        tested = [f"{trial.plan.recipe.model} {trial.test.accuracy:.2%}" for trial in trials if trial.test]
        return "", ", ".join(tested)
    if design.stage == "probe":
        return _show_best(design.metric, next(iter(rank_probes(trials)), None)), ""
    best, verdict = _show_best(design.metric, find_winner(record) if trials else None), stored_verdict(record)
    if verdict and verdict.decision == "better" and verdict.comparison:
        return best, f"winner {_show_mean(design.metric, verdict.comparison.winner)}"
    return best, f"baseline {_show_mean(design.metric, verdict.baseline)}" if verdict and verdict.baseline else ""


def _show_best(metric: str, trial: TrialRecord | None) -> str:
    """Return a trial's metric on the validation images; "" without a result."""
    value = trial.metrics.get(metric) if trial else None
    return "" if value is None else _show(metric, value)


def _show_mean(metric: str, side: Side) -> str:
    """Return the mean of the study's metric on the test images over the seeds of one side of a verdict."""
    return _show(metric, fmean(side.values or side.accuracies))


def _show(metric: str, value: float) -> str:
    """Return a metric's value, with its name unless it is accuracy."""
    shown = format_metric(metric, value)
    return shown if metric == "accuracy" else f"{NAMES[metric]} {shown}"
