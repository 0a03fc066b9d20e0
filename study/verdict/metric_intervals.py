"""Compute the verdict's interval for metrics that are no means over images, from predictions.

`statistics.py` does the same for accuracy and log loss. This module knows no recipe and no record.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from study.results.metrics import Evaluation
from study.seeding import derive_seed
from study.verdict.statistics import CONFIDENCE, POWER, Difference, widen_detectable

BATCH_CELLS = 2_000_000
"""Counts of images that are drawn at once, 16 MB."""

Gains = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""From how often each kind of image was drawn, (resamples, kinds), to the gain with each seed, (resamples, seeds)."""


def metric_difference(
    metric: str,
    before: Sequence[Evaluation],
    after: Sequence[Evaluation],
    labels: Sequence[int],
    *,
    seed: int,
    level: float = 1 - CONFIDENCE,
    resamples: int = 4_000,
) -> Difference:
    """Bootstrap the gain of one recipe over another, in a metric, over test images and over seeds.

    Each resample draws images and seeds, both with replacement, and keeps the pairs: an image is drawn together with
    what both recipes predict for it with every seed. Each seed's deviation from the mean gain is first stretched to
    what Student's interval asks for, √(S / (S-1)) · t / z for S seeds (Hesterberg, doi:10.1080/00031305.2015.1089789):
    few seeds, resampled among themselves, do not show how far away another might lie. The resamples' standard deviation
    gives the interval, so where seeds matter most, it is Student's. With one seed, it covers images only.

    Simulated with known truth (`docs/verdict.md` has the table), the interval covers it in 93 % of cases or more.

    Args:
        metric: balanced_accuracy or macro_f1.
        before: tests of the first recipe, by seed.
        after: tests of the second recipe with the same seeds and images, in the same order.
        labels: true class of each image, in the order of the predictions.
        seed: seed of the resampling.
        level: error probability of the interval, in (0, 1).
        resamples: number of resamples.
    """
    # Images of one class for which all predictions are the same are of one kind: they are interchangeable.
    answers = np.array([labels, *(test.predictions for test in [*before, *after])])
    (true, *predicted), counts = np.unique(answers, axis=1, return_counts=True)
    gains = _class_gains(metric, true, predicted, len(before[0].confusion))
    measured = [[test.metrics[metric] for test in tests] for tests in (before, after)]
    by_seed = np.subtract(measured[1], measured[0])
    seeds, images, mean = len(by_seed), int(counts.sum()), float(by_seed.mean())
    stretched = (_stretch(seeds) - 1) * (by_seed - mean)
    generator = np.random.default_rng(derive_seed(seed, "metric"))
    drawn = []
    batch = max(1, BATCH_CELLS // len(counts))
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        gained = gains(generator.multinomial(images, counts / images, size))
        shares = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size) / seeds
        drawn.append(np.sum(shares * (gained + stretched), axis=1))
    # Not the resamples' quantiles: those of few seeds lie too near each other. Student's interval is a spread too.
    spread = float(np.std(np.concatenate(drawn)))
    margin = float(scipy.stats.norm.isf(level / 2)) * spread
    p = float(2 * scipy.stats.norm.sf(abs(mean) / spread)) if spread else float(mean == 0)
    detectable = margin + float(scipy.stats.norm.ppf(POWER)) * spread
    return Difference(
        mean=mean,
        low=mean - margin,
        high=mean + margin,
        p=min(p * (1 - CONFIDENCE) / level, 1.0),
        detectable=widen_detectable(detectable, changed=_changed(metric, true, predicted, counts)),
    )


def _class_gains(metric: str, true: NDArray[np.int64], predicted: Sequence[NDArray[np.int64]], classes: int) -> Gains:
    """Return the gains in balanced accuracy or macro F1.

    Args:
        metric: balanced_accuracy or macro_f1.
        true: class of each kind of image, (kinds,).
        predicted: predictions of each kind, (kinds,) for each test: those of the first recipe, then of the second.
        classes: number of classes.
    """

    def gains(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        def count(kept: NDArray[np.bool_], by: NDArray[np.int64]) -> NDArray[np.float64]:
            """Count the drawn images of the kinds `kept` by the classes `by`: (resamples, classes)."""
            at = np.flatnonzero(kept)
            cells = scipy.sparse.csr_array((np.ones(len(at)), (at, by[at])), shape=(len(by), classes))
            counted: NDArray[np.float64] = drawn @ cells
            return counted

        every = np.ones_like(true, dtype=bool)
        images = count(every, true)
        values = []
        for answer in predicted:
            right = count(answer == true, true)
            if metric == "balanced_accuracy":
                parts, wholes = right, images
            else:
                parts, wholes = 2 * right, images + count(every, answer)
            # A class that was not drawn says nothing: the others' mean stands for it.
            values.append(np.nanmean(np.where(wholes > 0, parts / np.maximum(wholes, 1), np.nan), axis=1))
        seeds = len(values) // 2
        return np.transpose(np.subtract(values[seeds:], values[:seeds]))

    return gains


def _changed(
    metric: str, true: NDArray[np.int64], predicted: Sequence[NDArray[np.int64]], counts: NDArray[np.int64]
) -> float:
    """Return the share of a class's answers that the recipes give differently, as a mean over the classes.

    For balanced accuracy, two wrong answers are the same. For macro F1 they are not: they count in other precisions.
    The kinds of images are those of `_class_gains`, and `counts` says how many images are of each.
    """
    answers = np.equal(predicted, true) if metric == "balanced_accuracy" else np.array(predicted)
    before, after = np.split(answers, 2)
    by_kind = np.mean(before != after, axis=0)
    present = [true == one for one in np.unique(true)]
    return float(np.mean([np.average(by_kind[kinds], weights=counts[kinds]) for kinds in present]))


def _stretch(seeds: int) -> float:
    """Return the factor by which deviations of seeds are stretched: 1 for one seed, which has none."""
    if seeds == 1:
        return 1.0
    tail = (1 + CONFIDENCE) / 2
    return math.sqrt(seeds / (seeds - 1)) * float(scipy.stats.t.ppf(tail, seeds - 1) / scipy.stats.norm.ppf(tail))
