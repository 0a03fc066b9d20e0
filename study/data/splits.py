"""Draw stratified subsets and hold-out splits from a seed; images of one group stay on one side."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from study.data.images import Dataset, Images
from study.errors import DataError
from study.seeding import derive_seed

GROUP_DRAWS = 5
"""Number of draws of whole groups, of which the one nearest to the wanted numbers of images is kept."""


def split(
    images: Images, *, fraction: float, seed: int, classes: Sequence[str] = (), groups: Sequence[str] | None = None
) -> tuple[Images, Images]:
    """Hold out a stratified fraction of the images; each class keeps at least one image in both parts.

    Args:
        images: images to split.
        fraction: fraction of the images of each class to hold out, in (0, 1).
        seed: seed of the draw.
        classes: class names, for the error; classes without a name are called by their numbers.
        groups: group of each image, "" for an image of no group; None if there are no groups.

    Returns:
        The remaining images and the held-out images, both in the order of `images`.

    Raises:
        DataError: a class has a single image or a single group.
    """
    held_out = draw_held_out(
        images.labels, classes, fraction=fraction, seed=derive_seed(seed, "split"), groups=groups, what="validation"
    )
    rest = np.delete(np.arange(len(images)), held_out)
    return images.take(rest), images.take(held_out)


def split_validation(dataset: Dataset, *, fraction: float, seed: int) -> tuple[Images, Images]:
    """Return the training images and the validation images of a search: the data set's own, or a split of `train`.

    Raises:
        DataError: a class has a single image or a single group.
    """
    if dataset.validation is not None:
        return dataset.train, dataset.validation
    try:
        return split(
            dataset.train, fraction=fraction, seed=seed, classes=dataset.classes, groups=dataset.groups("train")
        )
    except DataError as error:
        raise DataError(f"{error} Or raise --fraction." if dataset.fraction < 1 else str(error)) from None


def draw_held_out(
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    fraction: float,
    seed: int,
    groups: Sequence[str] | None,
    what: str,
) -> NDArray[np.int64]:
    """Return the sorted indices of a stratified fraction; each class is on both sides, and each group on one.

    Args:
        labels: class of each image, (n,) int64.
        classes: class names, for the error.
        fraction: fraction of the images of each class to hold out, in (0, 1).
        seed: seed of the draw itself; `derive_seed` made it.
        groups: group of each image, "" for an image of no group; None if there are no groups.
        what: purpose of the held-out images, for the error: validation or test.

    Raises:
        DataError: a class has a single image or a single group.
    """
    sizes = np.bincount(labels, minlength=len(classes))
    if lone := [_name(classes, label) for label in np.flatnonzero(sizes == 1).tolist()]:
        images = "training images" if what == "validation" else "images"
        raise DataError(
            f"{what} split: every class must have 2 {images} or more, one to hold out, but {', '.join(lone)}"
            f" {'has' if len(lone) == 1 else 'have'} 1. Add images, or leave such classes out."
        )
    counts = np.clip(_quotas(sizes, fraction), np.minimum(sizes, 1), np.maximum(sizes - 1, 0))
    if groups is None or not any(groups):
        return _draw(labels, counts, seed)
    return _draw_groups(labels, classes, groups, counts, seed, what)


def _draw_groups(
    labels: NDArray[np.int64],
    classes: Sequence[str],
    groups: Sequence[str],
    counts: NDArray[np.int64],
    seed: int,
    what: str,
) -> NDArray[np.int64]:
    """Return sorted indices of whole groups that together have about `counts[label]` images of each class.

    scikit-learn's splitters of groups may leave a class of few groups on one side; here each class is on both. The best
    of at most GROUP_DRAWS draws is kept.
    """
    names = [group or f"\0{index}" for index, group in enumerate(groups)]  # without a group: a group of its own
    _, group_of = np.unique(names, return_inverse=True)
    sizes = np.zeros((group_of.max() + 1, len(counts)), np.int64)  # images of each group and class
    np.add.at(sizes, (group_of, labels), 1)
    random = np.random.default_rng(seed)
    best: tuple[int, NDArray[np.bool_]] | None = None
    for _ in range(GROUP_DRAWS):
        taken = _take_groups(sizes, counts, random.permutation(len(sizes)))
        miss = _miss(sizes[taken].sum(axis=0), counts)
        if best is None or miss < best[0]:
            best = miss, taken
        if miss <= len(counts):  # about one image for each class
            break
    assert best
    taken = best[1]
    if lacking := np.flatnonzero((sizes.sum(axis=0) > 0) & (sizes[taken].sum(axis=0) == 0)).tolist():
        raise DataError(
            f"{what} split: every class must be on both sides, and each group on one, but no group of"
            f" {_name(classes, lacking[0])} can be held out. Give a column split, or smaller groups."
        )
    return np.flatnonzero(taken[group_of])


def _take_groups(sizes: NDArray[np.int64], counts: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which groups to hold out: in this order, those that bring the classes' numbers of images near `counts`.

    Then, of a class of which none is held out, the group that fits best is taken, if there is one.
    """
    taken = np.zeros(len(sizes), bool)
    held, total = np.zeros_like(counts), sizes.sum(axis=0)

    def leaves_all(group: int) -> bool:
        return bool((total - held - sizes[group] >= np.minimum(total, 1)).all())

    for group in order:
        if _miss(held + sizes[group], counts) < _miss(held, counts) and leaves_all(group):
            taken[group] = True
            held += sizes[group]
    for label in np.argsort((sizes > 0).sum(axis=0), kind="stable"):  # classes of few groups have the least choice
        if total[label] and not held[label]:
            possible = [group for group in order if sizes[group, label] and not taken[group] and leaves_all(group)]
            if possible:
                best = min(possible, key=lambda group: _miss(held + sizes[group], counts))
                taken[best] = True
                held += sizes[best]
    return taken


def _miss(held: NDArray[np.int64], counts: NDArray[np.int64]) -> int:
    """Return how far the numbers of held-out images are from the wanted ones; a class without any is the worst."""
    return int(((held - counts) ** 2).sum()) + 10**12 * int(((held == 0) & (counts > 0)).sum())


def _name(classes: Sequence[str], label: int) -> str:
    return f"class {classes[label]!r}" if classes else f"class {label}"


def check_metric(metric: str, classes: Sequence[str], parts: Mapping[str, Images]) -> None:
    """Check that each class has images in all parts, if the metric is a mean over classes.

    Args:
        metric: metric that decides the study.
        classes: class names.
        parts: images that the metric is computed on, by their name for the error.

    Raises:
        DataError: a class has no image in a part.
    """
    if metric not in ("balanced_accuracy", "macro_f1"):
        return
    for name, images in parts.items():
        missing = np.flatnonzero(np.bincount(images.labels, minlength=len(classes)) == 0)
        if len(missing):
            raise DataError(
                f"--metric {metric}: every class must have {name} images, but {classes[missing[0]]!r} has none. Add"
                " images, or use --metric accuracy or log_loss."
            )


def _quotas(sizes: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return the number of images to draw from each class (largest remainder); together the rounded fraction."""
    exact = fraction * sizes
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = round(fraction * int(sizes.sum())) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def _draw(labels: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return sorted indices of `counts[label]` images of each class, drawn at random."""
    random = np.random.default_rng(seed)
    members = [random.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(counts)]
    drawn: NDArray[np.int64] = np.sort(np.concatenate(members))
    return drawn


def subset(
    labels: NDArray[np.int64], classes: tuple[str, ...], *, fraction: float, seed: int, place: str
) -> NDArray[np.int64]:
    """Return the sorted indices of a stratified fraction in which every class has an image.

    Args:
        labels: class of each image, (n,) int64.
        classes: class names, for the error.
        fraction: fraction of the images of each class, in (0, 1].
        seed: seed of the draw.
        place: name of the images in the error.

    Raises:
        DataError: a class would be empty.
    """
    sizes = np.bincount(labels, minlength=len(classes))
    counts = _quotas(sizes, fraction)
    for name, size, count in zip(classes, sizes, counts, strict=True):
        if count == 0:
            raise DataError(
                f"{place}: every class must keep an image, but --fraction {fraction} leaves none of the {size}"
                f" of class {name!r}. Raise --fraction."
            )
    return _draw(labels, counts, derive_seed(seed, "subset"))
