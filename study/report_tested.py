"""What a report says of tested trials: how right they are, what they mistake, how they train and how fast.

Values come from their records, statistics from `statistics.py`, pictures from `figures.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from study import figures
from study.catalogue import count_operations
from study.data import Dataset
from study.record import Record
from study.report_page import Picture, Section, Table, draw_picture
from study.statistics import ClassPair, accuracy_interval, hardest_pair
from study.trials import TrialRecord


def tested_trials(record: Record) -> list[TrialRecord]:
    """Return all that were tested, the verdict's last."""
    return [trial for trial in record.all_trials() if trial.test and trial.epochs]


RESULT_COLUMNS = ("trial", "accuracy", "95 % interval", "images/s", "training s", "parameters", "trained")


def result_row(trial: TrialRecord, told: dict[str, Any]) -> tuple[str, ...]:
    """Return a tested trial's cells under RESULT_COLUMNS."""
    assert trial.test
    counts = np.asarray(trial.test.confusion)
    low, high = accuracy_interval(np.arange(counts.sum()) < np.trace(counts))
    images = sum(result.images_per_s * result.epoch_s for result in trial.epochs)
    return (
        trial.plan.title,
        f"{trial.test.accuracy:.2%}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        starred(f"{images / trial.training_s:.1f}" if trial.training_s else "–", trial),
        starred(f"{trial.training_s:.1f}", trial),
        f"{trial.facts.get('parameters', 0):,}",
        f"{trial.facts.get('trainable_parameters', 0):,}",
    )


def starred(figure: str, trial: TrialRecord) -> str:
    """Mark a speed that the store helped to; the table says below what the star means."""
    return f"{figure}*" if is_helped(trial) and figure != "–" else figure


def is_helped(trial: TrialRecord) -> bool:
    """Tell whether it trained on outputs from the store.

    Each trial reads there, from its second epoch on, what it has itself made of the validation images; its seconds are
    of training alone.
    """
    return any((result.features or {}).get("read", 0) > np.sum(result.val_confusion or 0) for result in trial.epochs)


def results(tested: Sequence[TrialRecord], told: dict[str, Any]) -> Section | None:
    """Accuracy with its interval, and the confusion matrix of each."""
    if not tested:
        return None
    pictures = []
    for trial in tested:
        assert trial.test
        drawn = figures.confusion_matrix(np.asarray(trial.test.confusion), told["classes"], trial.plan.title)
        pictures.append(draw_picture(f"confusion matrix of {trial.plan.title}", drawn))
    table = Table(RESULT_COLUMNS, [result_row(trial, told) for trial in tested], sortable=True)
    text = "Each was trained on all training images and tested once. The interval is Wilson's, over test images alone."
    return Section("How right they are", text, [table], pictures)


def hardest(tested: Sequence[TrialRecord], told: dict[str, Any], dataset: Dataset | None) -> Section | None:
    """The two classes that are hardest to tell apart, over all tests, and the images mistaken most often."""
    if not tested:
        return None
    pair, text = hardest_pair_of(tested, told)
    pictures = []
    if dataset:
        mistaken = np.zeros(len(dataset.test), dtype=int)
        for trial in tested:
            assert trial.test
            seen, true = np.asarray(trial.test.predictions), dataset.test.labels
            mistaken += ((true == pair.first) & (seen == pair.second)) | ((true == pair.second) & (seen == pair.first))
        often = np.argsort(-mistaken, kind="stable")[:16]
        often = often[mistaken[often] > 0]
        if len(often):
            chosen = dataset.test.take(often)
            labels = [told["classes"][label] for label in chosen.labels]
            names = [f"{name} ({times}×)" for name, times in zip(labels, mistaken[often], strict=True)]
            colours = chosen.pixels.astype(np.float32) / 255
            drawn = figures.samples(colours, range(len(often)), names, "mistaken most often, with their class")
            pictures.append(draw_picture("the images that were mistaken most often", drawn))
    return Section("Hardest to tell apart", text, [], pictures)


def hardest_pair_of(tested: Sequence[TrialRecord], told: Mapping[str, Any]) -> tuple[ClassPair, str]:
    """Return the pair that all tests together confuse most, and a sentence of it."""
    pair = hardest_pair(np.sum([trial.test.confusion for trial in tested if trial.test], axis=0))
    first, second = told["classes"][pair.first], told["classes"][pair.second]
    tests = "one test" if len(tested) == 1 else f"{len(tested)} tests"
    said = f"{first} and {second}: over {tests}, {first} was taken for {second} {pair.first_as_second} times"
    return pair, f"{said}, and {second} for {first} {pair.second_as_first} times."


def training(tested: Sequence[TrialRecord], told: Mapping[str, Any]) -> Section | None:
    """Curves, seconds to given losses, and where the difference in speed comes from."""
    if not tested:
        return None
    curves, different = draw_curves({trial.plan.title: trial for trial in tested})
    marks = [] if different else _loss_marks(tested)
    digits = next(digits for digits in range(3, 18) if len({f"{mark:.{digits}g}" for mark in marks}) == len(marks))
    seconds = "Seconds of training until an epoch's mean loss was that low, and one" if marks else "One"
    speed = Table(
        ("trial", *(f"s to loss {mark:.{digits}g}" for mark in marks), "million multiply-adds", "of them frozen"),
        [
            (trial.plan.title, *(_seconds_to(trial, mark) for mark in marks), *_operations(trial, told))
            for trial in tested
        ],
        caption=f"{seconds} image's forward pass",
    )
    text = (
        "What is frozen is passed through forward alone, and in a search once for all trials; what is trained is passed"
        f" through forward and backward, about three times the work. {different}"
    )
    return Section("How they train", text.strip(), [speed], [curves])


def draw_curves(tested: Mapping[str, TrialRecord]) -> tuple[Picture, str]:
    """Draw training losses by epoch, and say where they are not of one kind."""
    curves = {title: [result.train_loss for result in trial.epochs] for title, trial in tested.items()}
    epochs = range(1, max(map(len, curves.values())) + 1)
    padded = {f"{title}_loss": [*losses, *[None] * (len(epochs) - len(losses))] for title, losses in curves.items()}
    drawn = draw_picture("training loss by epoch", figures.learning_curve(list(epochs), padded, "training loss"))
    smoothing = sorted({trial.plan.recipe.label_smoothing for trial in tested.values()})
    if len(smoothing) == 1:
        return drawn, ""
    values = ", ".join(f"{value:.3g}" for value in smoothing)
    return drawn, (
        f"The trials' label smoothing differs ({values}) and is part of their losses: the curves' heights are not to be"
        " compared, and no seconds to one loss are given."
    )


def _loss_marks(tested: Sequence[TrialRecord]) -> list[float]:
    """Return losses a quarter, half and three quarters of the way from the highest first one to the lowest."""
    highest = max(trial.epochs[0].train_loss for trial in tested)
    lowest = min(result.train_loss for trial in tested for result in trial.epochs)
    return list(dict.fromkeys(highest - share * (highest - lowest) for share in (0.25, 0.5, 0.75)))


def _seconds_to(trial: TrialRecord, loss: float) -> str:
    spent = accumulate(result.epoch_s for result in trial.epochs)
    reached = (seconds for seconds, result in zip(spent, trial.epochs, strict=True) if result.train_loss <= loss)
    return starred(next((f"{seconds:.1f}" for seconds in reached), "–"), trial)


def _operations(trial: TrialRecord, told: Mapping[str, Any]) -> tuple[str, str]:
    recipe = trial.plan.recipe
    frozen, trained = count_operations(
        recipe.model,
        image_size=recipe.image_size,
        unfreeze_depth=recipe.unfreeze_depth,
        classes=len(told["classes"]),
    )
    return f"{(frozen + trained) / 1e6:,.0f}", f"{frozen / (frozen + trained):.0%}"
