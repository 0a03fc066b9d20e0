"""Define labelled images in memory or in a file, their fingerprint, and the files that they were read from.

Reads no image file and knows no model.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from study.config.manifest import Found
from study.data.rows import Rows
from study.data.stored_pixels import StoredPixels, windows

Pixels = NDArray[np.uint8] | StoredPixels
"""Images (n, 3, height, width), as an array or in a file; both are indexed in the same way."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one size."""

    pixels: Pixels
    """(n, 3, height, width) uint8, RGB; an array is C-contiguous."""
    labels: NDArray[np.int64]
    """(n,) int64, indices into the data set's classes."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of these images; computed once, since it reads all of them."""
        return fingerprint(self)

    def take(self, indices: NDArray[np.int64]) -> "Images":
        """Return the images at `indices`, in the order of `indices`: a copy of an array, or other rows of a file."""
        pixels = self.pixels.take(indices) if isinstance(self.pixels, StoredPixels) else self.pixels[indices]
        return Images(pixels, self.labels[indices])

    def windows(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all images in their order, in parts of bounded size."""
        for part in windows(len(self), self.pixels.nbytes // max(1, len(self))):
            yield self.pixels[part]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images of the same classes."""

    name: str
    """Name of the data set and of its MLflow experiment: cifar10, digits or the folder's name."""
    classes: tuple[str, ...]
    train: Images
    test: Images
    fraction: float
    """Fraction of the source's images that is used, in (0, 1]."""
    validation: Images | None = None
    """Images that the source itself sets apart for validation; None if a search must hold some out of `train`."""
    rows: Rows = field(default_factory=Rows)
    """Files of the training, validation and test images, in this order, each in the order of its arrays; none for a
    source that has no files of its own."""
    found: Found = field(default_factory=Found)
    """What was found in the source, and what was left out."""

    @property
    def splits(self) -> dict[str, Images]:
        """Images of each split that there is, in this order: train, val (if the source gives it), test."""
        given = {"train": self.train, "val": self.validation, "test": self.test}
        return {split: images for split, images in given.items() if images is not None}

    def groups(self, split: str) -> Sequence[str] | None:
        """Return the group of each image of a split, "" for none; None for a source without files."""
        return self.rows.take(self.rows.having(split)).groups() or None

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of training images, test images, and class names in their order."""
        return fingerprint(self.train, self.test, classes=self.classes)

    def has_fingerprint(self, recorded: str) -> bool:
        """Return whether a recorded fingerprint is that of this data set; version 0.1.0 left the class names out."""
        return recorded in (self.fingerprint, fingerprint(self.train, self.test))


def fingerprint(
    *parts: Images, classes: Sequence[str] = (), watch: Callable[[int, int], None] = lambda done, of: None
) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of shape, labels, pixels, and class names if they are given.

    Equal images have equal fingerprints, whether they are in memory or in a file. That of images in a file is computed
    once.

    Args:
        parts: images of the splits.
        classes: class names; () to leave them out.
        watch: called with the number of images that were read, and of all images.
    """

    def compute() -> str:
        digest, done = hashlib.sha256(named), 0
        for images in parts:
            digest.update(repr(images.pixels.shape).encode())
            digest.update(np.ascontiguousarray(images.labels).data)
            for window in images.windows():
                digest.update(np.ascontiguousarray(window).data)
                done += len(window)
                watch(done, sum(map(len, parts)))
        return digest.hexdigest()[:16]

    named = json.dumps(classes).encode() if classes else b""
    stored = [images.pixels for images in parts if isinstance(images.pixels, StoredPixels)]
    if len(stored) < len(parts) or len({pixels.mark for pixels in stored}) > 1:
        return compute()
    details = [part for images, pixels in zip(parts, stored, strict=True) for part in (pixels.rows, images.labels)]
    return stored[0].recall([b"fingerprint", named, *(detail.tobytes() for detail in details)], compute)
