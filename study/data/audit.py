"""Audit the images of a data set: class sizes, copies, copies on both sides of a split, and copies under two labels.

Compares decoded pixels, never files: two files of one picture are copies, whatever their names and formats. Trains
nothing and changes nothing; `drop_leaks` returns another data set.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from study.data.decoding import Unwatched, Watch
from study.data.images import Dataset, Pixels
from study.data.rows import FileNames
from study.data.stored_pixels import StoredPixels

SIDE = 32
"""Side in pixels of the thumbnails that are compared; also that of the perceptual hash."""
MOST_BITS = 4
"""Most differing bits, of 64, of the perceptual hashes of near copies."""
LEAST_CORRELATION = 0.99
"""Least correlation of the thumbnails of near copies.

With both limits there is not one pair in scikit-learn's 1,797 digits, whose images are much alike, nor in a tenth of
CIFAR-10 (6,000 images). Copies that were resized, or saved as a JPEG of quality 50, are found.
"""
BANDS = [(13 * band, min(13, 64 - 13 * band)) for band in range(MOST_BITS + 1)]
"""First bit and width of the parts of a hash: two hashes that differ in at most MOST_BITS bits share a part."""
MOST_ALIKE = 2000
"""Most images with one part of the hash in common that are compared with each other: plain areas share all hashes."""
LOOK = np.dtype([("digest", "V16"), ("hash", "<u8")])
"""What is compared first of each image."""
LOOKS_NAME, GROUPS_NAME = "looks-1", b"groups-1"
"""Names of what the store keeps; the numbers change with this module's results."""
MAX_GROUPS = 100
"""Groups of copies that a record keeps, and a report may show."""


@dataclass(frozen=True)
class Group:
    """Images that are copies of each other."""

    members: tuple[int, ...]
    """Positions of the images in ascending order, counted through training, validation and test images."""
    exact: bool
    """Whether all pixels are equal, as stored; else they only look the same."""


@dataclass(frozen=True)
class Audit:
    """What the images of a data set are like."""

    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    """Number of images of each class, by split: train, val (if the source gives it) and test."""
    groups: tuple[Group, ...]
    """All groups of copies."""
    labels: NDArray[np.int64]
    """Class of each image, in the order of the positions."""
    names: Sequence[str]
    """File of each image, relative to the folder of all files; or its split and its number."""

    @property
    def first_test(self) -> int:
        """Position of the first test image."""
        return len(self.labels) - sum(self.counts["test"])

    @property
    def leaks(self) -> list[Group]:
        """Groups with test images and other images: what is tested was seen in training."""
        return [*filter(self._leaks, self.groups)]

    @property
    def leaked_test(self) -> list[int]:
        """Indices of the test images that have a copy outside the test images, from 0."""
        return sorted(at - self.first_test for group in self.leaks for at in group.members if at >= self.first_test)

    @property
    def contradictions(self) -> list[Group]:
        """Groups whose images have several labels."""
        return [*filter(self._contradicts, self.groups)]

    @property
    def extra_copies(self) -> int:
        """Number of images that could be left out without losing a picture."""
        return sum(len(group.members) - 1 for group in self.groups)

    @property
    def alike_classes(self) -> list[list[str]]:
        """Names of classes that differ only in upper and lower case, in lists of two or more."""
        alike: dict[str, list[str]] = defaultdict(list)
        for name in self.classes:
            alike[name.casefold()].append(name)
        return [names for names in alike.values() if len(names) > 1]

    def warnings(self, *, dropped: bool = False) -> Iterator[str]:
        """Yield a sentence for each fault that makes results doubtful.

        Args:
            dropped: whether the copies of test images were dropped from the other images since.
        """
        if leaks := self.leaks:
            tests = len(self.leaked_test)
            done = (
                "The copies were dropped from training" if dropped else "--leaks drop leaves the copies out of training"
            )
            yield (
                f"{_count(tests, 'test image')} of {sum(self.counts['test']):,} {_are(tests, past=dropped)} also among"
                f" the {'training or validation' if 'val' in self.counts else 'training'} images, for example"
                f" {self._example(leaks[0])}. {done}"
            )
        if wrong := self.contradictions:
            images = sum(len(group.members) for group in wrong)
            yield f"{_count(images, 'image')} stand under several classes, for example {self._example(wrong[0])}"
        if self.extra_copies and not leaks:
            extra, example = self.extra_copies, self._example(self.groups[0])
            yield f"{_count(extra, 'image')} {_are(extra)} a copy of another, for example {example}"
        if alike := self.alike_classes:
            yield (
                f"{sum(map(len, alike)):,} classes differ from another only in upper and lower case, for example"
                f" {' and '.join(alike[0][:2])}; if they are one class, give them one name"
            )

    def summary(self) -> dict[str, Any]:
        """Return what a study's record keeps, as JSON values."""
        return {
            "counts": {split: list(counts) for split, counts in self.counts.items()},
            "leaked_test": self.leaked_test,
            "leaked_labels": [int(self.labels[self.first_test + index]) for index in self.leaked_test],
            "contradictions": sum(len(group.members) for group in self.contradictions),
            "extra_copies": self.extra_copies,
            "groups": [
                {
                    "images": [self.describe(at) for at in group.members[:10]],
                    "members": list(group.members[:10]),
                    "exact": group.exact,
                    "leak": self._leaks(group),
                    "contradiction": self._contradicts(group),
                }
                for group in self.worst_groups(MAX_GROUPS)
            ],
        }

    def tables(self) -> Iterator[str]:
        """Yield the number of images by class and split, a line for each class, and the largest class's share."""
        width = max(map(len, self.classes))
        yield f"{'':{width}}  " + "".join(f"{split:>8}" for split in self.counts)
        for label, name in enumerate(self.classes):
            yield f"{name:{width}}  " + "".join(f"{counts[label]:>8,}" for counts in self.counts.values())
        totals = np.sum(list(self.counts.values()), axis=0)
        largest = int(np.argmax(totals))
        yield f"{self.classes[largest]} is the largest class, with {totals[largest] / totals.sum():.0%} of the images"

    def describe(self, position: int) -> str:
        """Return the name of an image, and its class."""
        return f"{self.names[position]} ({self.classes[self.labels[position]]})"

    def worst_groups(self, number: int) -> list[Group]:
        """Return the groups that do most harm: those of several classes first, then those that leak."""
        by_harm = sorted(self.groups, key=lambda one: (not self._contradicts(one), not self._leaks(one), one.members))
        return by_harm[:number]

    def _leaks(self, group: Group) -> bool:
        return group.members[0] < self.first_test <= group.members[-1]

    def _contradicts(self, group: Group) -> bool:
        return len({int(self.labels[at]) for at in group.members}) > 1

    def _example(self, group: Group) -> str:
        first, last = group.members[0], group.members[-1]
        return f"{self.describe(first)} and {self.describe(last)}{'' if group.exact else ', which look the same'}"


def audit_images(dataset: Dataset, watch: Watch | None = None) -> Audit:
    """Audit all images of a data set; about 0.4 s for 1,000 images on one core.

    Of images in the store, only those are read that were not audited before, and those that look like another.

    Args:
        dataset: images of all splits.
        watch: receiver of the progress; None for nobody.
    """
    splits = dataset.splits
    classes = len(dataset.classes)
    names: Sequence[str] = FileNames(dataset.rows)
    if not names:
        names = tuple(f"{split} image {at}" for split, images in splits.items() for at in range(len(images)))
    return Audit(
        classes=dataset.classes,
        counts={
            split: tuple(np.bincount(images.labels, minlength=classes).tolist()) for split, images in splits.items()
        },
        groups=tuple(_recall_groups(dataset, watch or Unwatched())),
        labels=np.concatenate([images.labels for images in splits.values()]),
        names=names,
    )


def drop_leaks(dataset: Dataset, audit: Audit) -> Dataset:
    """Return the data set without the training and validation images that have a copy among the test images."""
    leaked = {at for group in audit.leaks for at in group.members if at < audit.first_test}
    kept, first = {}, 0
    for split, images in dataset.splits.items():
        kept[split] = np.array([at for at in range(len(images)) if first + at not in leaked], np.int64)
        first += len(images)
    return replace(
        dataset,
        train=dataset.train.take(kept["train"]),
        validation=dataset.validation.take(kept["val"]) if dataset.validation else None,
        rows=dataset.rows.take(np.array([at for at in range(len(dataset.rows)) if at not in leaked], np.int64)),
        found=replace(dataset.found, leaks_dropped=len(leaked)),
    )


def _recall_groups(dataset: Dataset, watch: Watch) -> Iterator[Group]:
    """Yield groups of copies; those of unchanged images in the store come from a file."""
    parts = [images.pixels for images in dataset.splits.values()]
    looks = np.concatenate([_looks(pixels, watch) for pixels in parts])
    if not isinstance(parts[0], StoredPixels):
        yield from _groups(parts, looks)
        return
    text = parts[0].recall(
        [GROUPS_NAME, looks.tobytes()],
        lambda: json.dumps([(group.members, group.exact) for group in _groups(parts, looks)]),
    )
    for members, exact in json.loads(text):
        yield Group(tuple(members), exact)


def _looks(pixels: Pixels, watch: Watch) -> NDArray[Any]:
    """Return the look of each image (n,): the digest of its pixels, and its perceptual hash (Zauner 2010, by DCT)."""
    with ThreadPoolExecutor() as pool:

        def describe(images: NDArray[np.uint8]) -> NDArray[Any]:
            return np.array([*pool.map(_look, images)], LOOK)

        if isinstance(pixels, StoredPixels):
            return pixels.recall_rows(LOOKS_NAME, LOOK, describe, partial(watch.on_work, "audit"))
        return describe(pixels)


def _look(image: NDArray[np.uint8]) -> tuple[bytes, int]:
    digest = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
    return digest, int(str(imagehash.phash(_thumbnail(image))), 16)


def _groups(parts: Sequence[Pixels], looks: NDArray[Any]) -> Iterator[Group]:
    """Yield groups of copies, by their first image: exact copies, joined where their pictures look the same."""
    same: dict[bytes, list[int]] = defaultdict(list)
    for at, digest in enumerate(looks["digest"].tolist()):
        same[digest].append(at)
    copies = [*same.values()]
    pairs = np.array([*_near_pairs(parts, looks, [members[0] for members in copies])], np.int64).reshape(-1, 2)
    links = coo_array((np.ones(len(pairs)), pairs.T), shape=(len(copies), len(copies)))
    _, joined = connected_components(links, directed=False)
    groups: dict[int, list[list[int]]] = defaultdict(list)
    for group, members in zip(joined.tolist(), copies, strict=True):
        groups[group].append(members)
    for found in groups.values():
        members = sorted(at for part in found for at in part)
        if len(members) > 1:
            yield Group(tuple(members), exact=len(found) == 1)


def _near_pairs(parts: Sequence[Pixels], looks: NDArray[Any], chosen: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield pairs of the chosen images, by their places among them, that look the same."""
    starts = np.cumsum([0, *map(len, parts)])
    hashes = looks["hash"][np.array(chosen)]

    def image(place: int) -> NDArray[np.uint8]:
        part = int(np.searchsorted(starts, chosen[place], side="right")) - 1
        return parts[part][chosen[place] - int(starts[part])]

    seen: set[tuple[int, int]] = set()
    for start, width in BANDS:
        bands = (hashes >> np.uint64(start)) & np.uint64(2**width - 1)
        order = np.argsort(bands, kind="stable")
        for alike in np.split(order, np.flatnonzero(np.diff(bands[order])) + 1):
            alike = alike[:MOST_ALIKE]
            differing = np.bitwise_count(hashes[alike, None] ^ hashes[None, alike])
            for one, other in zip(*np.nonzero(np.triu(differing <= MOST_BITS, k=1)), strict=True):
                seen.add((int(alike[one]), int(alike[other])))
    for one, other in sorted(seen):
        if _correlation(image(one), image(other)) >= LEAST_CORRELATION:
            yield one, other


def _thumbnail(image: NDArray[np.uint8]) -> Image.Image:
    colours = Image.merge("RGB", [Image.fromarray(plane) for plane in image])  # faster than transposing the image
    return colours.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the correlation of two images' thumbnails; 0 where one is plain, and nothing can be compared."""
    deviations = [values - values.mean() for values in (np.asarray(_thumbnail(image), float) for image in (one, other))]
    norms = [float(np.linalg.norm(values)) for values in deviations]
    return float((deviations[0] * deviations[1]).sum() / (norms[0] * norms[1])) if all(norms) else 0.0


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _are(number: int, *, past: bool = False) -> str:
    one, several = ("was", "were") if past else ("is", "are")
    return one if number == 1 else several
