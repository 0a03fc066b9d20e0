"""Build the artifacts of MLflow's runs, as bytes by file name; this module does not send them."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from study.charts import figures
from study.config.plan import METRICS
from study.config.recipe import shown_fields
from study.results.arrays import INLINE, StoredArray, plain
from study.results.metrics import EpochResult
from study.results.trial_record import TrialRecord
from study.verdict.trial_table import Row
from study.verdict.verdict import Verdict
from study.verdict.wording import sentence


def trial_files(trial: TrialRecord, classes: Sequence[str]) -> dict[str, bytes]:
    """Return the artifacts of a finished trial by file name; a trial that failed early has fewer or none."""
    files: dict[str, bytes] = {}
    title = trial.plan.title
    if trial.epochs:
        curves = [epoch_metrics(result) for result in trial.epochs]
        names = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
        shown = {name: [values[name] for values in curves] for name in names}
        shown = {name: values for name, values in shown.items() if values[0] is not None}
        figure = figures.learning_curve([result.epoch for result in trial.epochs], shown, title)
        files["learning_curve.png"] = figures.png(figure)
    confusion = trial.test.confusion if trial.test else trial.epochs[-1].val_confusion if trial.epochs else None
    if confusion:
        split = "test" if trial.test else "validation"
        files["confusion_matrix.png"] = figures.png(
            figures.confusion_matrix(np.asarray(confusion), classes, f"{title} · {split}")
        )
        files["confusion_matrix.json"] = _json({"split": split, "classes": classes, **_counts(np.asarray(confusion))})
        files["classification_report.json"] = _json(_classification_report(np.asarray(confusion), classes))
    return files


def _counts(confusion: np.ndarray) -> dict[str, Any]:
    """Return a confusion matrix as JSON values: all counts, or of a large one those above 0 with their two classes."""
    if confusion.size <= INLINE:
        return {"counts": confusion.tolist()}
    places = np.argwhere(confusion)
    return {"cells": [[*place, int(confusion[*place])] for place in places.tolist()]}


def epoch_metrics(result: EpochResult) -> dict[str, float | None]:
    """Return the metrics of an epoch by their names in MLflow."""
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_s", "epoch_s")
    return {name: getattr(result, name) for name in names} | extra_metrics("val", result.val_metrics)


def extra_metrics(split: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that have no older name in MLflow: accuracy has its own, and the log loss is the loss."""
    return {f"{split}_{name}": metrics[name] for name in ("balanced_accuracy", "macro_f1") if name in metrics}


def _classification_report(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return scikit-learn's classification report of a confusion matrix, expanded to its (true, predicted) pairs."""
    from sklearn.metrics import classification_report

    true, predicted = np.indices(confusion.shape).reshape(2, -1).repeat(confusion.ravel(), axis=1)
    report: dict[str, Any] = classification_report(
        true, predicted, labels=range(len(classes)), target_names=classes, output_dict=True, zero_division=0
    )
    return report


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def comparison_files(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return the comparison of fixed trials as a table and a plot, by file name."""
    if not rows:
        return {}
    columns = ["model", "trainable_parameters", "seconds", "images_per_s", "test_accuracy", "hardest_pair"]
    columns += ["largest_share", "nothing_learnt"]
    losses = [f"loss_epoch_{epoch}" for epoch in range(1, max(len(row.losses) for row in rows) + 1)]
    figure = figures.comparison(
        [row.model for row in rows],
        {row.model: row.losses for row in rows},
        {row.model: row.test_accuracy for row in rows},
        {row.model: row.images_per_s for row in rows},
    )
    table = _csv(
        [*columns, *METRICS, *losses],
        [
            [*(getattr(row, column) for column in columns), *(row.metrics.get(name) for name in METRICS), *row.losses]
            for row in rows
        ],
    )
    return {"comparison.csv": table, "comparison.png": figures.png(figure)}


def search_files(
    trials: Sequence[TrialRecord], importances: Mapping[str, float], verdict: Verdict | None, classes: Sequence[str]
) -> dict[str, bytes]:
    """Return the trials of a search as a table, and its verdict as text, JSON and pictures, by file name."""
    recipe_fields = shown_fields(trial.plan.recipe for trial in trials)
    measured = [f"val_{name}" for name in METRICS]
    columns = ["trial", "state", *measured, "epochs", "seconds", "saved_s", *recipe_fields]
    lines = [
        [
            trial.number,
            trial.state,
            *(trial.metrics.get(name) for name in METRICS),
            len(trial.epochs),
            round(trial.seconds, 3),
            round(trial.saved_s, 3),
            *(getattr(trial.plan.recipe, name) for name in recipe_fields),
        ]
        for trial in trials
    ]
    files = {"trials.csv": _csv(columns, lines), "importances.json": json.dumps(importances, indent=1).encode()}
    files["verdict.txt"] = sentence(verdict).encode()
    if verdict:
        files["verdict.json"] = json.dumps(_small(plain(verdict)), indent=1).encode()
    if verdict and verdict.baseline and verdict.comparison:
        before, after = np.asarray(verdict.baseline.confusion), np.asarray(verdict.comparison.winner.confusion)
        pictures = {
            "confusion_baseline.png": figures.confusion_matrix(before, classes, "Baseline: test images, all seeds"),
            "confusion_winner.png": figures.confusion_matrix(after, classes, "Winner: test images, all seeds"),
            "confusion_difference.png": figures.confusion_difference(
                before, after, classes, "Winner minus baseline: test images, all seeds"
            ),
        }
        files |= {name: figures.png(figure) for name, figure in pictures.items()}
    return files


def _small(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a verdict's values without large confusion matrices, which its pictures show."""
    small = {key: _small(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in small.items() if not isinstance(value, StoredArray)}


def _csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(columns)
    writer.writerows(lines)
    return table.getvalue().encode()
