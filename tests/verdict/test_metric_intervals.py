"""The interval of a metric, on synthetic predictions whose truth is known by formula or by symmetry."""

import numpy as np
import pytest
from scipy.stats import norm

from study.results.metrics import Evaluation
from study.verdict.metric_intervals import metric_difference
from study.verdict.statistics import Difference

SHARES = np.array([0.6, 0.3, 0.1])
SPREAD = 1.5
"""Standard deviation of the images' difficulty; that of a classifier's skill is 1 in the same unit."""
LABELS = np.repeat([0, 1, 2], (SHARES * 200).astype(int))


def evaluation(labels: np.ndarray, predictions: np.ndarray) -> Evaluation:
    confusion = np.zeros((3, 3), dtype=int)
    np.add.at(confusion, (labels, predictions), 1)
    return Evaluation(1.0, confusion.tolist(), predictions.tolist())


def draw_tests(level: np.ndarray, difficulty: np.ndarray, generator: np.random.Generator) -> list[Evaluation]:
    """Draw three seeds' tests: an image is right where class level + seed - difficulty is above a normal number."""
    tests = []
    for skill in generator.normal(0, 0.1, 3):
        right = generator.normal(size=len(LABELS)) < level[LABELS] + skill - SPREAD * difficulty
        predictions = np.where(right, LABELS, (LABELS + generator.integers(1, 3, len(LABELS))) % 3)
        tests.append(evaluation(LABELS, predictions))
    return tests


def truth(metric: str, level: np.ndarray) -> float:
    """Return the metric on infinitely many images and seeds; errors fall on both other classes equally."""
    recalls = norm.cdf(level / np.sqrt(1 + SPREAD**2 + 0.1**2))
    if metric == "balanced_accuracy":
        return float(recalls.mean())
    missed = SHARES * (1 - recalls)
    predicted = SHARES * recalls + (missed.sum() - missed) / 2
    return float(np.mean(2 * SHARES * recalls / (SHARES + predicted)))


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_interval_covers_the_truth(metric, gain):
    """Of 100 intervals, at least 93 hold the true difference; with no true gain, at most 3 lie above 0."""
    generator = np.random.default_rng(0)
    level = np.array([1.5, 1.0, 0.5])
    true_gain = truth(metric, level + gain) - truth(metric, level)
    held = above = 0
    for seed in range(100):
        difficulty = generator.normal(size=len(LABELS))
        before, after = (draw_tests(each, difficulty, generator) for each in (level, level + gain))
        found = metric_difference(metric, before, after, LABELS.tolist(), seed=seed, resamples=400)
        held += found.low <= true_gain <= found.high
        above += found.low > 0
    assert held >= 93
    assert gain or above <= 3


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_difference_of_equal_predictions_is_zero(metric):
    tests = draw_tests(np.ones(3), np.zeros(len(LABELS)), np.random.default_rng(0))
    assert metric_difference(metric, tests, tests, LABELS.tolist(), seed=0) == Difference(0, 0, 0, p=1, detectable=0)


def test_difference_is_that_of_the_metrics_and_turns_around():
    generator = np.random.default_rng(0)
    before, after = (draw_tests(np.full(3, level), generator.normal(size=200), generator) for level in (0.5, 1.5))
    found, back = (
        metric_difference("macro_f1", *pair, LABELS.tolist(), seed=0) for pair in ((before, after), (after, before))
    )
    means = [np.mean([test.metrics["macro_f1"] for test in tests]) for tests in (before, after)]
    assert found.mean == pytest.approx(means[1] - means[0])
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=0.02)


def test_one_seed_compares_two_classifiers():
    generator = np.random.default_rng(0)
    difficulty = generator.normal(size=200)
    before, after = (draw_tests(np.full(3, level), difficulty, generator)[:1] for level in (0.0, 1.5))
    found = metric_difference("balanced_accuracy", before, after, LABELS.tolist(), seed=0)
    assert 0 < found.low < found.mean < found.high


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_one_changed_answer_promises_no_small_gain(metric):
    """Eight such changes lie 2.8 standard deviations above 0; one of 120 images of three classes counts 1 / 360."""
    labels = np.repeat([0, 1, 2], 120)
    before, after = labels.copy(), labels.copy()
    after[0] = 1
    tests = [evaluation(labels, one) for one in (before, after)]
    found = metric_difference(metric, tests[:1], tests[1:], labels.tolist(), seed=0)
    assert found.mean == pytest.approx(-1 / 360, rel=0.01)
    assert found.detectable == pytest.approx(8 / 360, rel=0.1)
