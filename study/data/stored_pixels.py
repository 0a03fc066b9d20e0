"""Read rows of a file of decoded images as if the file were an array of them; no image stays in memory.

Rows are read, not mapped: processes share them through the system's page cache all the same, and a file that is cut
short while it is used gives an error, where a mapped file would kill the process. Knows neither labels nor the files
that the images came from.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from study.errors import DataError
from study.files import replace_file

HEADER_BYTES = 4096
"""Bytes before the first row; a page, so that rows of whole pages are aligned."""
WINDOW_BYTES = 2**26
"""Bytes of images that are read at once where all of them are needed, one after the other."""
FACTS = "facts.json"
"""File beside the images, of what was computed from them."""


def new_header(about: dict[str, Any]) -> bytes:
    """Return the header of a new file: what `about` says, and a mark that no other file has."""
    text = json.dumps({"mark": secrets.token_hex(8), **about}).encode()
    assert len(text) < HEADER_BYTES, "the header must hold the description of the images"
    return text.ljust(HEADER_BYTES - 1) + b"\n"


def read_header(descriptor: int) -> dict[str, Any]:
    """Return what the header of an open file says; {} if it is no such file."""
    try:
        about = json.loads(os.pread(descriptor, HEADER_BYTES, 0))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


@dataclass(frozen=True, eq=False)
class StoredPixels:
    """Images of one size in a file; `pixels[index]` reads one of them, a slice or an array of indices reads several."""

    file: Path
    mark: str
    """Mark in the file's header, by which another file in its place is noticed."""
    side: tuple[int, int]
    """(height, width) in pixels."""
    rows: NDArray[np.int64]
    """Row of each image in the file, (n,)."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of all images together: (n, 3, height, width)."""
        return len(self.rows), 3, *self.side

    @property
    def image_bytes(self) -> int:
        """Size of one image."""
        return 3 * self.side[0] * self.side[1]

    @property
    def nbytes(self) -> int:
        """Size of all images together."""
        return len(self.rows) * self.image_bytes

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, chosen: SupportsIndex | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read one image (3, height, width), or several (n, 3, height, width) in the order asked for.

        Raises:
            DataError: the file is gone, is another one or was cut short.
        """
        rows = np.atleast_1d(self.rows[chosen])
        images = np.empty((len(rows), self.image_bytes), np.uint8)
        descriptor = _open(self.file, self.mark)
        for place in np.argsort(rows, kind="stable").tolist():  # in the file's order, which a disk reads faster
            at = HEADER_BYTES + int(rows[place]) * self.image_bytes
            if os.preadv(descriptor, [images[place]], at) < self.image_bytes:
                raise DataError(
                    f"{self.file}: must hold {at + self.image_bytes:,} bytes, but was cut short. Start again: what is"
                    " missing is decoded again."
                )
        shaped = images.reshape(len(rows), 3, *self.side)
        return shaped if np.ndim(self.rows[chosen]) else shaped[0]

    def hold(self) -> "StoredPixels":
        """Open the file, which keeps it from being evicted as long as this process lives, and return the images."""
        _open(self.file, self.mark)
        return self

    def take(self, indices: NDArray[np.int64]) -> "StoredPixels":
        """Return the images at `indices`, in the order of `indices`, without reading any."""
        return StoredPixels(self.file, self.mark, self.side, self.rows[indices])

    def recall(self, parts: Sequence[bytes], compute: Callable[[], str]) -> str:
        """Return what `compute` makes of these images, from a file if it was computed before.

        Args:
            parts: everything besides the images that the result depends on.
            compute: function that reads the images.
        """
        key = blake2b(self.rows.tobytes(), digest_size=16)
        for part in parts:
            key.update(len(part).to_bytes(8, "little") + part)
        name, file = f"{self.mark}-{key.hexdigest()}", self.file.with_name(FACTS)
        if (known := _read_facts(file).get(name)) is not None:
            return known
        value = compute()
        with suppress(OSError), replace_file(file) as draft:  # without room it is computed again the next time
            draft.write_text(json.dumps({**_read_facts(file), name: value}))
        return value

    def recall_rows(
        self,
        name: str,
        kind: DTypeLike,
        compute: Callable[[NDArray[np.uint8]], NDArray[Any]],
        watch: Callable[[int, int], None],
    ) -> NDArray[Any]:
        """Return what `compute` makes of each image, from a file where it was computed before.

        Args:
            name: name of the result, which changes whenever its meaning does.
            kind: type of one image's result, of which the bytes are never all zero.
            compute: function of some images (n, 3, height, width) that returns their results (n,).
            watch: called with the number of images that were computed, and the number to compute.
        """
        file = self.file.with_name(f"{name}-{self.mark}")
        size = np.dtype(kind).itemsize
        try:
            data = file.read_bytes()
        except OSError:
            data = b""
        known = np.frombuffer(data[: len(data) // size * size], kind)
        rows = max(len(known), int(self.rows.max(initial=-1)) + 1)
        results = np.zeros(rows, kind)
        results[: len(known)] = known
        raw = results.view(np.uint8).reshape(rows, size)
        missing = np.unique(self.rows[~raw[self.rows].any(axis=1)])
        done = 0
        try:
            for part in windows(len(missing), self.image_bytes):
                some = missing[part]
                results[some] = compute(StoredPixels(self.file, self.mark, self.side, some)[:])
                done += len(some)
                watch(done, len(missing))
        finally:
            if done:
                with suppress(OSError), replace_file(file) as draft:
                    draft.write_bytes(results.tobytes())
        return results[self.rows]


def windows(count: int, image_bytes: int) -> Iterator[slice]:
    """Cut `count` images into parts that take at most WINDOW_BYTES, or one image where that is larger."""
    step = max(1, WINDOW_BYTES // max(1, image_bytes))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _read_facts(file: Path) -> dict[str, str]:
    try:
        facts = json.loads(file.read_text())
    except (OSError, ValueError):  # there is none yet, or it is damaged
        return {}
    return facts if isinstance(facts, dict) else {}


@cache
def _open(file: Path, mark: str) -> int:
    """Return a descriptor of the file for the rest of the process, with a lock that keeps the file from being evicted.

    Raises:
        DataError: the file is gone, or is another one.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{file}: must hold the decoded images, but: {error.strerror}. Start again.") from None
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if read_header(descriptor).get("mark") != mark:
        os.close(descriptor)
        raise DataError(f"{file}: must be the decoded images of this study, but is another file. Start again.")
    return descriptor
