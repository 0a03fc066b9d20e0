"""Compute the verdict's paired statistics: intervals and p-values from what each test image contributes to a metric.

This module knows no model, file or recipe. `judge.py` gives it the predictions, and `wording.py` explains the numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy  # which imports `scipy.stats` when it is used: that takes half a second
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
"""Whether each test image was classified correctly."""
Outcomes = Flags | NDArray[np.float64]
"""What each test image contributes to a metric that is a mean over images: more is better."""
Decision = Literal["better", "worse", "no better"]

CONFIDENCE = 0.95
POWER = 0.8
"""Share of studies that would find the difference called detectable."""
LOOKS = {3: 0.0056, 4: 0.0136, 5: 0.0255, 6: 0.042}
"""Two-sided level of each look of a verdict that may stop early, by the number of its seeds.

The bounds have the shape of O'Brien and Fleming's (doi:10.2307/2530245): strict at first, so that the last look costs
little. In simulations that also stop once the gain is not above 0, 2.8 to 3.0 % of equal recipes are called better.
"""
FIRST_SEEDS = 2
"""Seeds after which such a verdict may stop because the gain is not above 0. It calls nothing better before LOOKS.

In simulations, this leaves the rate of wrong *better* as it is, finds at most 0.6 points fewer true gains of 3 points
than a first stop at 3 seeds, and takes 3.6 seeds instead of 4.3 where the recipes are equal. The interval of a verdict
that ends without a gain needs no allowance for looks: it covers the truth in 94.8 to 98.4 % of cases.
"""


@dataclass(frozen=True)
class Difference:
    """A metric after minus the same metric before, such that more is better, with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float
    p: float | None = None
    """Two-sided p-value, at most 0.05 if and only if the interval excludes 0; None in records of version 0.1.0."""
    detectable: float | None = None
    """Smallest true difference, above 0, that 80 % of such studies would find; None in records of version 0.1.0."""


class ClassPair(NamedTuple):
    """Two classes, by index, and how many images of each were predicted as the other."""

    first: int
    second: int
    first_as_second: int
    second_as_first: int


def accuracy_interval(right: int, images: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's interval for the accuracy of one trained classifier; it covers test images, not seeds.

    Args:
        right: number of correctly classified test images.
        images: number of test images.
        confidence: confidence level, in (0, 1).
    """
    interval = scipy.stats.binomtest(right, images).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_exact(before_correct: Flags, after_correct: Flags) -> float:
    """Return the exact two-sided p-value of the hypothesis that two trained classifiers are equally accurate.

    This is the test of McNemar (1947). It is valid for one seed: pooled over seeds, it would count each image several
    times as if it were a new one, and the p-value would be too small. `compare_recipes` combines seeds.

    Args:
        before_correct: correctness of each test image, (images,) bool.
        after_correct: the same for the second classifier, with the same images in the same order.
    """
    assert before_correct.shape == after_correct.shape
    won = int(np.count_nonzero(after_correct & ~before_correct))
    lost = int(np.count_nonzero(before_correct & ~after_correct))
    return float(scipy.stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def compare_recipes(before: Outcomes, after: Outcomes, *, level: float = 1 - CONFIDENCE) -> Difference:
    """Estimate the difference of two recipes' accuracies or log losses, for new test images and for new seeds.

    This is the multi-reader multi-case analysis of Hillis (doi:10.1002/sim.2024, other designs: doi:10.1002/sim.5926)
    with seeds as readers, nested in recipes, and images as cases. With S seeds and n images,

        variance = (MS_seed,before + MS_seed,after + 2 max(MS_image x recipe - MS_error, 0)) / (S n),
        df       = (S n variance)^2 / sum of MS_seed^2 / (S - 1)    (Welch, Satterthwaite).

    That both recipes use the same seeds is ignored: it can only make the interval too wide. In simulations
    (`docs/verdict.md`) it covers the truth in 93 to 97 % of cases, and equal recipes are called better in at most 3 %.
    With one seed, or if the seeds do not differ at all, the interval covers images only: then it is Student's, and it
    compares two trained classifiers, not two recipes.

    Args:
        before: correctness or negative loss of each test image for each seed, (seeds, images).
        after: the same for the second recipe, with the same images in the same order.
        level: two-sided significance level of this look at the data; below 0.05 if there may be several looks, which
            together then have a level of 0.05. The interval and the p-value allow for it.
    """
    assert before.ndim == 2 and before.shape == after.shape
    seeds, images = before.shape
    outcomes = np.stack([before, after]).astype(float)
    by_seed, by_image = outcomes.mean(axis=2), outcomes.mean(axis=1)
    means = by_seed.mean(axis=1)
    gains = by_image[1] - by_image[0]
    difference = float(means[1] - means[0])
    # In two recipes, half of a gain's deviation belongs to each, hence the 2 below.
    ms_images = seeds * float(np.sum((gains - difference) ** 2)) / 2 / max(images - 1, 1)
    ms_seeds, ms_error = np.zeros(2), 0.0
    if seeds > 1:
        ms_seeds = images * by_seed.var(axis=1, ddof=1) * (np.ptp(by_seed, axis=1) > 0)  # exactly 0 for equal seeds
        rest = outcomes - by_seed[:, :, None] - by_image[:, None, :] + means[:, None, None]
        ms_error = float(np.sum(rest**2)) / (2 * (seeds - 1) * max(images - 1, 1))
    total = float(ms_seeds.sum())
    if seeds == 2:  # one degree of freedom each: often far below MS_error, which is the least that is to be expected
        total = max(total, 2 * ms_error)
    total += 2 * max(ms_images - ms_error, 0.0)
    if ms_seeds.any():
        freedom = total**2 / float(np.sum(ms_seeds**2) / (seeds - 1))
    else:
        total, freedom = 2 * ms_images, max(images - 1, 1)
    error = math.sqrt(total / (seeds * images))
    reach = float(scipy.stats.t.isf(level / 2, freedom)) * error
    p = 2 * float(scipy.stats.t.sf(abs(difference) / error, freedom)) if error else float(difference == 0)
    detectable = reach + float(scipy.stats.t.ppf(POWER, freedom)) * error
    if before.dtype == bool:
        detectable = widen_detectable(detectable, changed=float(np.mean(before != after)))
    return Difference(
        mean=difference,
        low=difference - reach,
        high=difference + reach,
        p=min(p * (1 - CONFIDENCE) / level, 1.0),
        detectable=detectable,
    )


def widen_detectable(detectable: float, *, changed: float) -> float:
    """Return the detectable difference of two shares, given what it would be with the spread that was seen.

    A difference of d takes a share d of changed answers. Where fewer have changed, studies with this difference see
    more of them, and the variance of what they see grows with that number.

    Args:
        detectable: detectable difference by the spread that was seen, in [0, inf).
        changed: share of the answers, over images and seeds, that count for one recipe only.
    """
    return detectable**2 / changed if detectable > changed > 0 else detectable


def level_of_look(seeds: int) -> float:
    """Return the level at which a verdict that may stop early looks at its data; that of the first for fewer seeds."""
    return LOOKS[max(seeds, min(LOOKS))]


def holm(p: float, others: Sequence[float]) -> float:
    """Correct a p-value for other tests, by Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979).

    If each test is called significant at its corrected value, the chance that any is so wrongly stays at the level.
    """
    ranked = sorted([*others, p])
    upto = ranked[: ranked.index(p) + 1]
    return min(1.0, max((len(ranked) - rank) * value for rank, value in enumerate(upto)))


def decide(difference: Difference, earlier: Sequence[float] = ()) -> Decision:
    """Call a recipe better or worse only if its whole interval lies above or below 0.

    Args:
        difference: difference of the recipes.
        earlier: p-values of earlier verdicts on the same test images; the corrected p-value must be significant too.
    """
    if difference.p is not None and holm(difference.p, earlier) > 1 - CONFIDENCE:
        return "no better"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no better"


def hardest_pair(confusion: NDArray[np.integer[Any]]) -> ClassPair:
    """Return the two classes that are confused most often; of equal pairs, the first.

    Args:
        confusion: counts, (classes, classes), at least two classes; row = true class, column = predicted class.
    """
    firsts, seconds = np.triu_indices(len(confusion), k=1)
    worst = np.argmax(confusion[firsts, seconds] + confusion[seconds, firsts])
    first, second = int(firsts[worst]), int(seconds[worst])
    return ClassPair(first, second, int(confusion[first, second]), int(confusion[second, first]))
