"""Define the results of a trial as plain values, and the metrics that are computed from them.

Needs no torch: the record reads these values back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from study.config.plan import METRICS
from study.results.arrays import Counts, StoredArray

NAMES = dict(zip(METRICS, ("accuracy", "balanced accuracy", "macro F1", "log loss"), strict=True))
"""Names of the metrics for people."""
MINIMISED = frozenset({"log_loss"})
"""Metrics of which less is better; of all others, which are fractions in [0, 1], more is better."""


class ClassScores(NamedTuple):
    """Precision, recall and F1 of one class, each in [0, 1], and the number of its images."""

    precision: float
    """0, like the others, where its denominator is 0: for a class that is never predicted."""
    recall: float
    f1: float
    images: int


class Sums(NamedTuple):
    """What all metrics but the log loss are computed from: three numbers of images for each class."""

    right: NDArray[np.int64]
    """Images of the class that were predicted as it."""
    images: NDArray[np.int64]
    """Images of the class."""
    predicted: NDArray[np.int64]
    """Images that were predicted as the class."""


def sums_of(confusion: Counts) -> Sums:
    """Return the sums of a confusion matrix; those of a stored one are computed once."""
    if isinstance(confusion, StoredArray):
        return _sum_file(*confusion.version, confusion.shape)
    return _sum(np.asarray(confusion))


@lru_cache(maxsize=1024)
def _sum_file(file: Path, changed_ns: int, shape: tuple[int, ...]) -> Sums:
    return _sum(np.asarray(StoredArray(file, shape)))


def _sum(counts: NDArray[np.int64]) -> Sums:
    return Sums(np.diag(counts).copy(), counts.sum(axis=1), counts.sum(axis=0))


def add_up(confusions: Iterable[Counts]) -> NDArray[np.int64]:
    """Return the sum of confusion matrices, (classes, classes)."""
    total: NDArray[np.int64] = np.sum([np.asarray(confusion) for confusion in confusions], axis=0)
    return total


def count_images(confusion: Counts) -> int:
    """Return the number of images in a confusion matrix."""
    return int(sums_of(confusion).images.sum())


def count_right(confusion: Counts) -> int:
    """Return the number of images that were classified correctly."""
    return int(sums_of(confusion).right.sum())


def accuracy(confusion: Counts) -> float:
    """Return the accuracy of a confusion matrix: the sum of its diagonal over the sum of all counts, in [0, 1]."""
    return count_right(confusion) / count_images(confusion)


def class_scores(confusion: Counts) -> list[ClassScores]:
    """Return precision, recall and F1 of each class, as scikit-learn defines them (with zero_division=0)."""
    return _scores(sums_of(confusion))


def _scores(sums: Sums) -> list[ClassScores]:
    right, images, predicted = sums
    wholes = predicted, images, (predicted + images) / 2
    scores = [np.divide(right, whole, out=np.zeros(len(right)), where=whole > 0) for whole in wholes]
    precision, recall, f1 = (values.tolist() for values in scores)
    return [ClassScores(*row) for row in zip(precision, recall, f1, images.tolist(), strict=True)]


def measure(confusion: Counts, loss: float | None) -> dict[str, float]:
    """Return the metrics of a classifier on a set of images by their names, in the order of METRICS.

    Balanced accuracy is the mean recall of the classes that have images; macro F1 is the mean F1 of all classes.

    Args:
        confusion: numbers of images, (classes, classes): row = true class, column = predicted class.
        loss: mean cross-entropy, the log loss; None if it is not known, and left out of the result.
    """
    return _measure(sums_of(confusion), loss)


def _measure(sums: Sums, loss: float | None) -> dict[str, float]:
    scores = _scores(sums)
    values = {
        "accuracy": float(sums.right.sum() / sums.images.sum()),
        "balanced_accuracy": float(np.mean([score.recall for score in scores if score.images])),
        "macro_f1": float(np.mean([score.f1 for score in scores])),
    }
    return values if loss is None else {**values, "log_loss": loss}


def score(metric: str, value: float) -> float:
    """Return a metric's value with the sign by which more is better; applied again, it gives the value back."""
    return -value if metric in MINIMISED else value


def format_metric(metric: str, value: float) -> str:
    """Return a metric's value for people: a fraction in percent, the log loss as a number."""
    return f"{value:.4f}" if metric in MINIMISED else f"{value:.2%}"


def largest_class(confusion: Counts) -> tuple[int, float]:
    """Return the class that has the most images, by index, and its share of all images: how often a guess is right."""
    sizes = sums_of(confusion).images
    return int(sizes.argmax()), float(sizes.max() / sizes.sum())


def guess(metric: str, confusion: Counts) -> float:
    """Return what a metric is without looking at images: that of always predicting the largest class.

    The log loss of that would be infinite, so it is that of predicting each class with its share of the images.
    """
    images = sums_of(confusion).images
    if metric in MINIMISED:
        shares = images[images > 0] / images.sum()
        return float(-(shares * np.log(shares)).sum())
    only = np.arange(len(images)) == images.argmax()
    return _measure(Sums(images * only, images, images.sum() * only), None)[metric]


def nothing_learnt(confusion: Counts, classes: Sequence[str], metric: str = "accuracy") -> str | None:
    """Return why a classifier has learnt nothing, or None if it has learnt something.

    It has learnt nothing if it predicts one class only, or if its metric is not above that of always predicting the
    largest class. A log loss is infinite for such a guess, so accuracy is compared in its place.

    Args:
        confusion: numbers of images, (classes, classes): row = true class, column = predicted class.
        classes: class names, in the order of the rows.
        metric: metric that decides the study.
    """
    sums = sums_of(confusion)
    predicted = np.flatnonzero(sums.predicted)
    if len(predicted) == 1:
        return f"every image is predicted as {classes[predicted[0]]}"
    metric = "accuracy" if metric in MINIMISED else metric
    largest, share = largest_class(confusion)
    guessed = guess(metric, confusion)
    if _measure(sums, None)[metric] > guessed + 1e-12:  # fractions, summed in another order, differ in their last bits
        return None
    if metric == "accuracy":
        return f"the accuracy is not above the share of the largest class, {classes[largest]} ({share:.2%})"
    return f"the {NAMES[metric]} is not above that of always predicting {classes[largest]} ({guessed:.2%})"


@dataclass(frozen=True)
class Evaluation:
    """Results of a classifier on a set of images, as plain values."""

    loss: float
    """Mean cross-entropy, without label smoothing."""
    confusion: Counts
    """Numbers of images, (classes, classes): row = true class, column = predicted class."""
    predictions: list[int] | StoredArray
    """Predicted class of each image, in the order of the set."""
    seconds: float = field(default=0.0, compare=False)
    """Duration of the evaluation. Ignored when two evaluations are compared."""
    losses: list[float] | StoredArray | None = None
    """Cross-entropy of each image, in the order of the set; None except for the verdict's trials."""

    @property
    def accuracy(self) -> float:
        """Fraction of images that were classified correctly, in [0, 1]."""
        return accuracy(self.confusion)

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by their names."""
        return measure(self.confusion, self.loss)


@dataclass(frozen=True)
class EpochResult:
    """Results of one epoch of one trial, as plain values."""

    epoch: int
    """Number of the epoch, counted from 1."""
    train_loss: float
    """Mean training loss over the epoch's images, label smoothing included."""
    epoch_s: float
    """Seconds of training, without validation."""
    images_per_s: float
    """Training images divided by `epoch_s`."""
    val_loss: float | None = None
    """Mean validation loss; None, like `val_confusion`, if no validation images are held out."""
    val_confusion: Counts | None = None
    features: dict[str, int] | None = None
    """Numbers of images, validation included, by the source of their prefix outputs: 'read' from the store, 'stored'
    after computing, 'computed' only, since storing is not worthwhile, or 'unstored', since the store does not work.
    None without a store."""
    train_accuracy: float | None = None
    """Fraction of the epoch's images that were classified correctly during training, in [0, 1]; None in older
    records."""
    val_s: float = field(default=0.0, compare=False)
    """Seconds of validation after the epoch. Ignored when two results are compared."""
    store_failure: str | None = None
    """Why the store does not work; None if it works or if there is none."""
    graph_failure: str | None = None
    """Why no CUDA graph was replayed although it was asked for; None if one was, or if none was asked for."""

    @property
    def val_accuracy(self) -> float | None:
        """Fraction of validation images that were classified correctly, in [0, 1]; None without validation images."""
        return None if self.val_confusion is None else accuracy(self.val_confusion)

    @property
    def val_metrics(self) -> dict[str, float]:
        """All metrics on the validation images by their names; empty without validation images."""
        return {} if self.val_confusion is None else measure(self.val_confusion, self.val_loss)


@dataclass(frozen=True)
class Progress:
    """Progress within one epoch of training, for callbacks."""

    epoch: int
    """Number of the epoch, counted from 1."""
    images: int
    """Images of this epoch that were trained on so far."""
    of: int
    """All images of this epoch."""
    images_per_s: float
