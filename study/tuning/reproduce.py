"""Train a kept model again from its model card, without Ray, and compare both results.

Neither the weights that were kept nor the study's record are read.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from study.compute.hardware import choose_hardware
from study.config.plan import Plan
from study.config.resume_flags import check_places
from study.data.images import Dataset
from study.dispatch.cluster import TRIAL_ENVIRONMENT
from study.errors import RecordError
from study.models.pretrained import Pretrained, load_pretrained
from study.models.saved_model import CARD_FILE, ModelCard, find_model, load_images
from study.results.metrics import EpochResult, Evaluation
from study.training.run_trial import Inputs, run_trial
from study.verdict.statistics import CONFIDENCE, accuracy_interval


@dataclass(frozen=True)
class Reproduction:
    """Result of training a model again."""

    card: ModelCard
    """Model card of the first training, with its result."""
    test: Evaluation
    """Evaluation of the second training, on the same test images."""
    same_arithmetic: bool
    """Whether hardware and software are those of the first training, so that results are equal to the last bit."""

    @property
    def moved(self) -> int:
        """Minimum number of test images that were classified differently, from the two confusion matrices."""
        difference = np.asarray(self.test.confusion) - np.asarray(self.card.confusion)
        return int(np.abs(difference).sum()) // 2

    @property
    def agrees(self) -> bool:
        """Whether both results are equal within the tolerance.

        On the same hardware and software, both confusion matrices must be identical. Elsewhere rounding differs, and
        training turns that into other weights. Then the 95 % intervals (Wilson) of both accuracies must overlap, and
        those of each class too, widened so that the 95 % hold for all classes together (Bonferroni).
        """
        if self.same_arithmetic:
            return self.moved == 0
        pair = self.card.confusion, self.test.confusion
        right, total = zip(*((np.trace(counts), np.sum(counts)) for counts in pair), strict=True)
        if not _meet(right, total, CONFIDENCE):
            return False
        classes = range(len(self.card.classes))
        confidence = 1 - (1 - CONFIDENCE) / len(classes)
        return all(
            _meet([counts[label][label] for counts in pair], [sum(counts[label]) for counts in pair], confidence)
            for label in classes
        )


def reproduce(
    study: Path, watch: Callable[[EpochResult], None], which: str = "", places: Mapping[str, Any] | None = None
) -> Reproduction:
    """Train the kept model of a study again, and test it.

    Args:
        study: directory of the study.
        watch: called with each epoch's result.
        which: which of the study's models, as `find_model` takes it.
        places: where the card's `source`, `data_dir` and `weights` lie now, if they were moved.

    Raises:
        ConfigError: there is no such model, or its images or weights are not where they were.
        RecordError: the model card cannot be read, or images or weights have changed.
        StudyError: images or weights cannot be read, or the training fails.
    """
    card = replace(ModelCard.read(find_model(study, which) / CARD_FILE), **(places or {}))
    check_places(card.source, card.weights)
    dataset = load_images(card)
    if not dataset.has_fingerprint(card.data_fingerprint):
        _check_same("data_fingerprint", card.data_fingerprint, dataset.fingerprint)
    pretrained = load_pretrained(card.recipe.model, card.weights, classes=len(card.classes))
    _check_same("weights_digest", card.weights_digest, pretrained.digest)

    # As in the trial's process: the number of threads changes how sums are rounded.
    threads = torch.get_num_threads()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", TRIAL_ENVIRONMENT["CUBLAS_WORKSPACE_CONFIG"])
    torch.set_num_threads(card.threads)
    try:
        arithmetic = choose_hardware(card.precision).arithmetic
        test = _train(card, dataset, pretrained, watch)
    finally:
        torch.set_num_threads(threads)
    return Reproduction(card, test, arithmetic == card.arithmetic)


def describe(reproduction: Reproduction) -> list[str]:
    """Describe both results, the tolerance, and whether they agree within it."""
    card, test = reproduction.card, reproduction.test
    if reproduction.same_arithmetic:
        tolerance = "the same hardware and software, so both confusion matrices must be identical"
    else:
        tolerance = (
            "other hardware or software, so the 95 % intervals of both accuracies must overlap, and those of each"
            " class's recall"
        )
    same = "the same" if reproduction.moved == 0 else f"at least {reproduction.moved} images differ"
    return [
        f"then     {card.test_accuracy:.2%} of {np.sum(card.confusion):,} test images",
        f"now      {test.accuracy:.2%}; confusion matrix: {same}",
        f"by       {tolerance}",
        f"verdict  {'reproduced' if reproduction.agrees else 'not reproduced'}",
    ]


def _train(
    card: ModelCard, dataset: Dataset, pretrained: Pretrained, watch: Callable[[EpochResult], None]
) -> Evaluation:
    inputs = Inputs(
        train=dataset.train,
        validation=None,
        test=dataset.test,
        classes=len(card.classes),
        pretrained={card.recipe.model: pretrained.arrays},
        precision=card.precision,
    )
    test = None
    for report in run_trial(Plan(0, "final", card.recipe, card.seed), inputs):
        if isinstance(report, EpochResult):
            watch(report)
        elif isinstance(report, Evaluation):
            test = report
    assert test, "a trial that is given test images ends with its test"
    return test


def _check_same(key: str, then: str, now: str) -> None:
    if then != now:
        raise RecordError(
            f"{CARD_FILE}: {key} must stay {then}, but got {now}. Restore the files that the model was trained with."
        )


def _meet(right: Sequence[int], total: Sequence[int], confidence: float) -> bool:
    """Return whether the confidence intervals of two accuracies, right / total each, overlap."""
    (low, high), (other_low, other_high) = (
        accuracy_interval(int(hits), int(count), confidence) for hits, count in zip(right, total, strict=True)
    )
    return low <= other_high and other_low <= high
