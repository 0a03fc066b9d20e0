"""Keep large arrays of results in files beside the journal, which names them. No file is ever changed or unpickled.

A confusion matrix of 1,000 classes has a million counts. The journal, which is read as a whole, would grow by megabytes
with each epoch.
"""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from study.errors import RecordError
from study.files import flush, replace_file

INLINE = 16_384
"""Largest number of values that stays in the journal: confusion matrices of up to 128 classes do."""
FOLDER = "arrays"
"""Directory of the arrays, in the directory of the study."""
KEY = "array"
"""Key of a value that stands for an array in the journal: the name of its file."""
HELD = 8
"""Number of arrays that stay in memory after their last use, a few megabytes each."""


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array in a file, read when it is used; it takes the place of nested lists of numbers."""

    file: Path
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the values, which must not be changed, for numpy's functions.

        Raises:
            RecordError: the file is missing or damaged.
        """
        try:
            values = _read(*self.version)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
            raise _damage(self.file) from None
        if values.shape != self.shape:
            raise _damage(self.file)
        return values if dtype is None and not copy else np.array(values, dtype)

    @property
    def version(self) -> tuple[Path, int]:
        """What tells the file from any other, and from an earlier one of its name: a key for what is computed from it.

        Raises:
            RecordError: the file is missing.
        """
        try:
            return self.file, self.file.stat().st_mtime_ns
        except OSError:
            raise _damage(self.file) from None

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Return a value, or a part of the array."""
        return np.asarray(self)[index]

    def __iter__(self) -> Iterator[Any]:
        """Yield the values along the first axis."""
        return iter(np.asarray(self))

    def __eq__(self, other: object) -> bool:
        """Return whether another array, or nested lists, hold the same values."""
        return isinstance(other, StoredArray | list) and bool(np.array_equal(self, np.asarray(other)))

    def __hash__(self) -> int:
        """Return a hash of the shape, which equal arrays share."""
        return hash(self.shape)


Counts = Annotated[StoredArray | list[list[int]], Field(union_mode="left_to_right")]
"""A confusion matrix: numbers of images, (classes, classes); row = true class, column = predicted class."""


def plain(value: Any) -> Any:
    """Return a dataclass as a dictionary, like `asdict`, but without a copy of each number of its lists."""
    if isinstance(value, StoredArray | type):
        return value
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, list) and value and is_dataclass(value[0]):
        return [plain(part) for part in value]
    return value


def store_arrays(value: Any, directory: Path, name: str) -> Any:
    """Return a value for the journal: nested lists of more than INLINE numbers are written to files and named.

    Args:
        value: value that JSON can hold, or one with a `StoredArray` inside.
        directory: directory of the study.
        name: beginning of the files' names, unique to this value within the study.

    Raises:
        RecordError: a file cannot be written.
    """
    if isinstance(value, Mapping):
        return {key: store_arrays(part, directory, f"{name}-{key}") for key, part in value.items()}
    if isinstance(value, StoredArray) or (isinstance(value, list) and _size(value) > INLINE):
        array = np.asarray(value)
        _write(directory / FOLDER / f"{name}.npz", array)
        return {KEY: f"{name}.npz", "shape": list(array.shape)}
    return value


def find_arrays(value: Any, directory: Path) -> Any:
    """Return a value of the journal, with a `StoredArray` in the place of each name; the inverse of `store_arrays`."""
    if isinstance(value, Mapping):
        if value.keys() == {KEY, "shape"}:
            return StoredArray(directory / FOLDER / value[KEY], tuple(value["shape"]))
        return {key: find_arrays(part, directory) for key, part in value.items()}
    return value


def _size(value: list[Any]) -> int:
    """Return how many numbers a list of numbers, or of equally long lists of numbers, holds."""
    if not value:
        return 0
    return len(value) * len(value[0]) if isinstance(value[0], list) else len(value) * isinstance(value[0], int | float)


def _write(file: Path, array: NDArray[Any]) -> None:
    """Write an array whole and bring it to the disk, in the smallest type that holds all of its values exactly."""
    if np.issubdtype(array.dtype, np.integer):
        array = array.astype(np.promote_types(np.min_scalar_type(array.min()), np.min_scalar_type(array.max())))
    elif np.array_equal(array.astype(np.float32), array):
        array = array.astype(np.float32)
    try:
        file.parent.mkdir(exist_ok=True)
        with replace_file(file) as draft:
            with open(draft, "wb") as stream:
                np.savez_compressed(stream, values=array)
            flush(draft)
        flush(file.parent)
    except OSError as error:
        raise RecordError(
            f"{file}: must be writable, but got: {error.strerror}."
            " Recorded results are safe. Fix the cause, then continue with --resume."
        ) from None


@lru_cache(maxsize=HELD)
def _read(file: Path, changed_ns: int) -> NDArray[Any]:
    """Read an array; `changed_ns` tells a file from an earlier one of its name."""
    with np.load(file, allow_pickle=False) as held:
        values: NDArray[Any] = held["values"]
    if np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.int64)  # so that sums and differences neither overflow nor lose their sign
    values.flags.writeable = False
    return values


def _damage(file: Path) -> RecordError:
    return RecordError(f"{file}: must hold an array of the study, but is missing or damaged. Restore it from a copy.")
