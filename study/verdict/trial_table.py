"""Build the table of tested trials."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from study.results.metrics import largest_class, nothing_learnt
from study.results.trial_record import TrialRecord
from study.verdict.statistics import hardest_pair


@dataclass(frozen=True)
class Row:
    """One tested trial of a comparison."""

    model: str
    trainable_parameters: int
    seconds: float
    """Training time of all epochs."""
    images_per_s: float
    """Training images per second of `seconds`."""
    losses: tuple[float, ...]
    """Training loss of each epoch."""
    test_accuracy: float
    """Accuracy on the test images, in [0, 1]."""
    hardest_pair: str
    """The two classes that are confused most often, with counts in both directions; – if nothing was learnt."""
    metrics: dict[str, float] = field(default_factory=dict)
    """All metrics on the test images by their names."""
    largest_share: float | None = None
    """Share of the largest class of the test images, in [0, 1]."""
    nothing_learnt: str | None = None
    """Why the classifier has learnt nothing; None if it has learnt something."""


def compare(trials: Sequence[TrialRecord], classes: Sequence[str]) -> list[Row]:
    """Return one row per tested trial."""
    return [_row(trial, classes) for trial in trials if trial.test and trial.epochs]


def faster(rows: Sequence[Row]) -> str | None:
    """Return a sentence that compares the fastest trials of the models; None with fewer than two models."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row.images_per_s, reverse=True):
        best.setdefault(row.model, row)
    if len(best) < 2:
        return None
    ranked = list(best.values())
    others = ", ".join(
        f"{ranked[0].images_per_s / row.images_per_s:.1f} times as fast as {row.model}" for row in ranked[1:]
    )
    return f"{ranked[0].model} trains fastest: {ranked[0].images_per_s:.1f} images/s, {others}."


def _row(trial: TrialRecord, classes: Sequence[str]) -> Row:
    assert trial.test
    seconds = trial.training_s
    images = sum(result.images_per_s * result.epoch_s for result in trial.epochs)
    pair = hardest_pair(np.asarray(trial.test.confusion))
    first, second = classes[pair.first], classes[pair.second]
    confused = f"{first} → {second} {pair.first_as_second}, {second} → {first} {pair.second_as_first}"
    why = nothing_learnt(trial.test.confusion, classes)
    return Row(
        model=trial.plan.recipe.model,
        trainable_parameters=trial.facts["trainable_parameters"],
        seconds=seconds,
        images_per_s=images / seconds,
        losses=tuple(result.train_loss for result in trial.epochs),
        test_accuracy=trial.test.accuracy,
        hardest_pair="–" if why else confused,
        metrics=trial.metrics,
        largest_share=largest_class(trial.test.confusion)[1],
        nothing_learnt=why,
    )
