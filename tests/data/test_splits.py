"""Splits are disjoint, exhaustive, stratified and a function of the seed."""

import numpy as np
import pytest
from support.images import indices, numbered

from study.data.splits import check_metric, split
from study.errors import DataError


def test_split_is_disjoint_and_exhaustive() -> None:
    rest, held_out = split(numbered(50, 30, 20), fraction=0.2, seed=0)
    assert sorted(indices(rest) + indices(held_out)) == list(range(100))


def test_split_is_stratified() -> None:
    _, held_out = split(numbered(50, 30, 20), fraction=0.2, seed=0)
    assert np.bincount(held_out.labels).tolist() == [10, 6, 4]


def test_split_keeps_the_source_order() -> None:
    for side in split(numbered(20, 20), fraction=0.3, seed=0):
        assert indices(side) == sorted(indices(side))


def test_split_is_a_function_of_the_seed() -> None:
    once, again, other = (indices(split(numbered(50, 50), fraction=0.2, seed=seed)[1]) for seed in (3, 3, 4))
    assert once == again
    assert once != other


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_split_leaves_every_class_on_both_sides(fraction: float) -> None:
    for side in split(numbered(2, 3, 40), fraction=fraction, seed=0):
        assert set(side.labels) == {0, 1, 2}


def test_split_refuses_a_class_with_a_single_image() -> None:
    with pytest.raises(DataError, match=r"2 training images or more, but class 1 .* has 1\."):
        split(numbered(5, 1), fraction=0.2, seed=0)


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_metric_over_classes_needs_images_of_each(metric):
    message = f"--metric {metric}: every class must have test images, but 'dog' has none"
    with pytest.raises(DataError, match=message):
        check_metric(metric, ("cat", "dog", "eel"), {"validation": numbered(1, 1, 1), "test": numbered(3, 0, 2)})


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_metric_over_images_needs_no_class(metric):
    check_metric(metric, ("cat", "dog"), {"test": numbered(3, 0)})
