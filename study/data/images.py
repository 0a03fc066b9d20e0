"""Define labelled images in memory, and their fingerprint.

Knows no file and no model.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one size."""

    pixels: NDArray[np.uint8]
    """(n, 3, height, width) uint8, RGB, C-contiguous."""
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
        """Return a copy of the images at `indices`, in the order of `indices`."""
        return Images(self.pixels[indices], self.labels[indices])


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


def fingerprint(*parts: Images) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of shape, labels and pixels; equal images have equal fingerprints."""
    digest = hashlib.sha256()
    for images in parts:
        digest.update(repr(images.pixels.shape).encode())
        digest.update(np.ascontiguousarray(images.labels).data)
        digest.update(np.ascontiguousarray(images.pixels).data)
    return digest.hexdigest()[:16]
