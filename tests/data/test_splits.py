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


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((5, 1), r"but class 1 has 1\. Add images"), ((1, 5, 1), r"but class 0, class 2 have 1\. Add images")],
)
def test_split_refuses_a_class_with_a_single_image(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=rf"2 training images or more, .* {message}"):
        split(numbered(*sizes), fraction=0.2, seed=0)


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_whole_and_classes_on_both_sides(seed: int) -> None:
    """For groups of any size, of one class or of several."""
    random = np.random.default_rng(seed)
    images = numbered(*random.integers(40, 120, 3))
    size = int(random.integers(1, 6))
    groups = [f"{label if seed % 2 else ''} {random.integers(len(images) // size)}" for label in images.labels]
    groups = [group if index % 7 else "" for index, group in enumerate(groups)]
    rest, held_out = (indices(side) for side in split(images, fraction=0.25, seed=seed, groups=groups))
    assert sorted(rest + held_out) == list(range(len(images)))
    assert {groups[index] for index in rest} & {groups[index] for index in held_out} <= {""}
    wanted, got = 0.25 * np.bincount(images.labels), np.bincount(images.labels[held_out], minlength=3)
    assert (np.abs(got - wanted) <= 5).all()


def test_split_by_groups_is_a_function_of_the_seed() -> None:
    images, groups = numbered(50, 50), [str(index // 4) for index in range(100)]
    once, again, other = (indices(split(images, fraction=0.2, seed=seed, groups=groups)[1]) for seed in (3, 3, 4))
    assert once == again
    assert once != other


def test_split_by_groups_serves_classes_of_two_groups() -> None:
    images = numbered(*[20] * 30)
    seen = np.zeros(30, int)
    groups = []
    for label in images.labels:
        groups.append(f"{label}-{seen[label] % 2}")
        seen[label] += 1
    _, held_out = split(images, fraction=0.2, seed=0, groups=groups)
    assert np.bincount(held_out.labels).tolist() == [10] * 30


def test_split_names_a_class_of_a_single_group() -> None:
    images = numbered(10, 10)
    groups = [str(index % 3) if label else "one" for index, label in enumerate(images.labels)]
    with pytest.raises(DataError, match=r"no group of class 'cat' can be held out"):
        split(images, fraction=0.2, seed=0, groups=groups, classes=("cat", "dog"))


def test_empty_groups_split_as_no_groups() -> None:
    images = numbered(20, 20)
    assert indices(split(images, fraction=0.2, seed=0, groups=[""] * 40)[1]) == indices(
        split(images, fraction=0.2, seed=0)[1]
    )


@pytest.mark.parametrize("metric", ["balanced_accuracy", "macro_f1"])
def test_metric_over_classes_needs_images_of_each(metric):
    message = f"--metric {metric}: every class must have test images, but 'dog' has none"
    with pytest.raises(DataError, match=message):
        check_metric(metric, ("cat", "dog", "eel"), {"validation": numbered(1, 1, 1), "test": numbered(3, 0, 2)})


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_metric_over_images_needs_no_class(metric):
    check_metric(metric, ("cat", "dog"), {"test": numbered(3, 0)})
