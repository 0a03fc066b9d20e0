"""Define the results of a trial as plain values: an epoch's, an evaluation's, and how far an epoch is.

Needs no torch: the record reads these values back.
"""

from dataclasses import dataclass, field

import numpy as np


def accuracy(confusion: list[list[int]]) -> float:
    """Return the accuracy of a confusion matrix: the sum of its diagonal over the sum of all counts, in [0, 1]."""
    counts = np.asarray(confusion)
    return float(np.trace(counts) / counts.sum())


@dataclass(frozen=True)
class Evaluation:
    """Results of a classifier on a set of images, as plain values."""

    loss: float
    """Mean cross-entropy, without label smoothing."""
    confusion: list[list[int]]
    """Numbers of images, (classes, classes): row = true class, column = predicted class."""
    predictions: list[int]
    """Predicted class of each image, in the order of the set."""
    seconds: float = field(default=0.0, compare=False)
    """Duration of the evaluation. Ignored when two evaluations are compared."""

    @property
    def accuracy(self) -> float:
        """Fraction of images that were classified correctly, in [0, 1]."""
        return accuracy(self.confusion)


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
    val_confusion: list[list[int]] | None = None
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

    @property
    def val_accuracy(self) -> float | None:
        """Fraction of validation images that were classified correctly, in [0, 1]; None without validation images."""
        return None if self.val_confusion is None else accuracy(self.val_confusion)


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
