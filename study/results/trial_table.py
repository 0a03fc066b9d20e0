"""Build the table of tested trials."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from study.results.statistics import hardest_pair
from study.results.trial_record import TrialRecord


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
