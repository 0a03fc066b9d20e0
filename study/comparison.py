"""What the trials of a study say side by side, read off its record: for people, and as files beside MLflow's runs."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from study.report import figures
from study.results.trial_record import TrialRecord
from study.results.trial_table import Row
from study.results.verdict import Verdict
from study.results.wording import sentence


def comparison_files(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return a baseline's comparison as a table and a plot, by file name."""
    if not rows:
        return {}
    columns = ["model", "trainable_parameters", "seconds", "images_per_s", "test_accuracy", "hardest_pair"]
    losses = [f"loss_epoch_{epoch}" for epoch in range(1, max(len(row.losses) for row in rows) + 1)]
    figure = figures.comparison(
        [row.model for row in rows],
        {row.model: row.losses for row in rows},
        {row.model: row.test_accuracy for row in rows},
        {row.model: row.images_per_s for row in rows},
    )
    table = _csv([*columns, *losses], [[*(getattr(row, column) for column in columns), *row.losses] for row in rows])
    return {"comparison.csv": table, "comparison.png": figures.png(figure)}


def search_files(
    trials: Sequence[TrialRecord], importances: Mapping[str, float], verdict: Verdict | None, classes: Sequence[str]
) -> dict[str, bytes]:
    """Return a search's trials as a table, and its verdict as data and pictures, by file name."""
    recipe_fields = list(trials[0].plan.recipe.to_dict())
    columns = ["trial", "state", "val_accuracy", "epochs", "seconds", "saved_s", *recipe_fields]
    lines = [
        [
            trial.plan.number,
            trial.state,
            trial.val_accuracy,
            len(trial.epochs),
            round(trial.seconds, 3),
            round(trial.saved_s, 3),
            *trial.plan.recipe.to_dict().values(),
        ]
        for trial in trials
    ]
    files = {"trials.csv": _csv(columns, lines), "importances.json": json.dumps(importances, indent=1).encode()}
    files["verdict.txt"] = sentence(verdict).encode()
    if verdict:
        files["verdict.json"] = json.dumps(asdict(verdict), indent=1).encode()
    if verdict and verdict.baseline and verdict.comparison:
        before, after = np.asarray(verdict.baseline.confusion), np.asarray(verdict.comparison.winner.confusion)
        pictures = {
            "confusion_baseline.png": figures.confusion_matrix(before, classes, "baseline, all seeds, test"),
            "confusion_winner.png": figures.confusion_matrix(after, classes, "winner, all seeds, test"),
            "confusion_difference.png": figures.confusion_difference(before, after, classes, "winner minus baseline"),
        }
        files |= {name: figures.png(figure) for name, figure in pictures.items()}
    return files


def _csv(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> bytes:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(columns)
    writer.writerows(lines)
    return table.getvalue().encode()
