"""Draw stratified subsets and hold-out splits from a seed."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from study.data.images import Images
from study.errors import DataError
from study.seeding import derive_seed


def split(images: Images, *, fraction: float, seed: int) -> tuple[Images, Images]:
    """Hold out a stratified fraction of the images; each class keeps at least one image in both parts.

    Returns:
        The remaining images and the held-out images, both in the order of `images`.

    Raises:
        DataError: a class has a single image.
    """
    sizes = np.bincount(images.labels)
    if 1 in sizes:
        raise DataError(
            f"validation split: every class must have 2 training images or more, but class {sizes.tolist().index(1)}"
            " (classes in their order, from 0) has 1. Add images, or raise --fraction."
        )
    counts = np.clip(_quotas(sizes, fraction), 1, np.maximum(sizes - 1, 1))
    held_out = _draw(images.labels, counts, derive_seed(seed, "split"))
    rest = np.delete(np.arange(len(images)), held_out)
    return images.take(rest), images.take(held_out)


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
