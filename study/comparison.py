"""What the trials of a study say side by side, read off its record: for people, and as files beside MLflow's runs."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from study import figures
from study.statistics import hardest_pair
from study.trials import TrialRecord
from study.verdict import Verdict, sentence


@dataclass(frozen=True)
class Row:
    """One finished trial in a comparison."""

    model: str
    trainable_parameters: int
    seconds: float
    """Of training, all epochs."""
    images_per_s: float
    """Training images over `seconds`."""
    losses: tuple[float, ...]
    """Of each epoch, on the training images."""
    test_accuracy: float
    """In [0, 1]."""
    hardest_pair: str
    """The two classes with the largest sum of their two confusions, with counts."""


def compare(trials: Sequence[TrialRecord], classes: Sequence[str]) -> list[Row]:
    """Return a row for each trial that was tested."""
    return [_row(trial, classes) for trial in trials if trial.test and trial.epochs]


def faster(rows: Sequence[Row]) -> str | None:
    """Say which model trains fastest, and by how much, each by its fastest trial; None without two to compare."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.images_per_s, reverse=True):
        best.setdefault(row.model, row)
    if len(best) < 2:
        return None
    ranked = list(best.values())
    others = ", ".join(f"{ranked[0].images_per_s / row.images_per_s:.1f} times {row.model}" for row in ranked[1:])
    return f"{ranked[0].model} trains fastest: {ranked[0].images_per_s:.1f} images/s, {others}."


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


def _row(trial: TrialRecord, classes: Sequence[str]) -> Row:
    assert trial.test
    seconds = trial.training_s
    images = sum(result.images_per_s * result.epoch_s for result in trial.epochs)
    pair = hardest_pair(np.asarray(trial.test.confusion))
    first, second = classes[pair.first], classes[pair.second]
    return Row(
        model=trial.plan.recipe.model,
        trainable_parameters=trial.facts["trainable_parameters"],
        seconds=seconds,
        images_per_s=images / seconds,
        losses=tuple(result.train_loss for result in trial.epochs),
        test_accuracy=trial.test.accuracy,
        hardest_pair=f"{first} → {second} {pair.first_as_second}, {second} → {first} {pair.second_as_first}",
    )
