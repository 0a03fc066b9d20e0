"""Metrics agree with scikit-learn's on the same predictions, and a classifier that knows nothing is found out."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
)

from study.config.plan import METRICS
from study.results.metrics import (
    Evaluation,
    class_scores,
    format_metric,
    guess,
    largest_class,
    measure,
    nothing_learnt,
    score,
)

ANIMALS = ("cat", "dog")


def predict(seed: int, classes: int = 4, images: int = 200) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Return true classes of unequal sizes, predictions that are often right, and their confusion."""
    generator = np.random.default_rng(seed)
    true = np.concatenate([np.arange(classes), np.minimum(generator.geometric(0.5, images) - 1, classes - 1)])
    predicted = np.where(generator.random(len(true)) < 0.6, true, generator.integers(0, classes, len(true)))
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (true, predicted), 1)
    return true, predicted, confusion.tolist()


def test_evaluations_are_equal_whatever_they_took():
    first = Evaluation(loss=1.0, confusion=[[1]], predictions=[0], seconds=1.0)
    assert first == dataclasses.replace(first, seconds=2.0)


@pytest.mark.parametrize("seed", range(5))
def test_measure_agrees_with_scikit_learn(seed):
    true, predicted, confusion = predict(seed)
    expected = {
        "accuracy": accuracy_score(true, predicted),
        "balanced_accuracy": balanced_accuracy_score(true, predicted),
        "macro_f1": f1_score(true, predicted, average="macro"),
        "log_loss": 0.5,
    }
    assert measure(confusion, 0.5) == pytest.approx(expected)
    assert tuple(measure(confusion, 0.5)) == METRICS


def test_class_scores_agree_with_scikit_learn():
    true, predicted, confusion = predict(0)
    expected = np.transpose(precision_recall_fscore_support(true, predicted))
    assert np.array(class_scores(confusion)) == pytest.approx(expected)


def test_class_that_is_never_predicted_scores_zero():
    assert class_scores([[3, 0], [1, 0]])[1] == (0, 0, 0, 1)


def test_balanced_accuracy_ignores_a_class_without_images():
    assert measure([[3, 1], [0, 0]], None)["balanced_accuracy"] == 0.75


def test_score_turns_a_loss_around_and_back():
    assert (score("log_loss", 0.5), score("log_loss", -0.5), score("macro_f1", 0.5)) == (-0.5, 0.5, 0.5)


def test_format_metric_writes_fractions_in_percent():
    assert (format_metric("macro_f1", 0.5), format_metric("log_loss", 0.5)) == ("50.00%", "0.5000")


def test_largest_class_gives_its_share():
    assert largest_class([[1, 1], [3, 3]]) == (1, 0.75)


def test_nothing_is_learnt_by_predicting_one_class():
    assert nothing_learnt([[7, 0], [3, 0]], ANIMALS) == "every image is predicted as cat"
    assert nothing_learnt([[0, 3], [0, 7]], ANIMALS, "log_loss") == "every image is predicted as dog"


@pytest.mark.parametrize(("confusion", "learnt"), [([[6, 1], [2, 1]], False), ([[6, 1], [1, 2]], True)])
def test_nothing_is_learnt_unless_the_largest_class_is_beaten(confusion, learnt):
    why = nothing_learnt(confusion, ANIMALS)
    assert (why is None) == learnt
    assert learnt or why == "the accuracy is not above the share of the largest class, cat (70.00%)"


def test_nothing_learnt_judges_by_the_metric_of_the_study():
    """Right about 16 of 19 cats and about the only dog: less often than a guess of cat, but both classes are known."""
    confusion = [[16, 3], [0, 1]]
    assert nothing_learnt(confusion, ANIMALS) is not None
    assert nothing_learnt(confusion, ANIMALS, "balanced_accuracy") is None


def test_nothing_is_learnt_by_guessing_both_classes_equally():
    why = nothing_learnt([[49, 49], [1, 1]], ANIMALS, "balanced_accuracy")
    assert why == "the balanced accuracy is not above that of always predicting cat (50.00%)"


@pytest.mark.parametrize("sizes", [(7, 3), (5, 0, 5), (1, 2, 7)])
def test_guess_is_the_metric_of_predicting_without_looking(sizes):
    """scikit-learn's metrics of the largest class for every image, and of the classes' shares as probabilities."""
    true = np.repeat(range(len(sizes)), sizes)
    guessed = np.full(len(true), np.argmax(sizes))
    confusion = np.diag(sizes)
    assert guess("accuracy", confusion) == pytest.approx(accuracy_score(true, guessed))
    assert guess("balanced_accuracy", confusion) == pytest.approx(recall_score(true, guessed, average="macro"))
    every = [*range(len(sizes))]
    wanted = f1_score(true, guessed, labels=every, average="macro", zero_division=0)
    assert guess("macro_f1", confusion) == pytest.approx(wanted)
    shares = np.tile(np.divide(sizes, sum(sizes)), (len(true), 1))
    assert guess("log_loss", confusion) == pytest.approx(log_loss(true, shares, labels=every))
