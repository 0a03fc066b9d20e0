"""Hold which file has which label, split and group, in tens of bytes an image: a million files fit into 60 MB.

Reads no file. A `Row` is made when it is asked for, since a path as an object takes ten times the memory of its text.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Row:
    """One image file of a data set."""

    path: Path
    label: str
    """Name of its class."""
    split: str = ""
    """train, val or test; "" if the source does not say, and before a split is drawn."""
    group: str = ""
    """Name of the patient, product or video that it shows, which must stay on one side of a split; "" for none."""


class Rows:
    """Many rows, in order: a file's name and group as text in one array, its folder, label and split as a number."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        """Take the rows one by one, so that the caller needs to hold none."""
        kinds: dict[tuple[str, str, str], int] = {}
        text, ends, numbers = bytearray(), [0], []
        for row in rows:
            folder, name = os.path.split(row.path)
            text += _encode(f"{name}\0{row.group}")
            ends.append(len(text))
            numbers.append(kinds.setdefault((folder, row.label, row.split), len(kinds)))
        self._set([*kinds], bytes(text), np.array(ends, np.int64), np.array(numbers, np.int32))

    def _set(
        self, kinds: list[tuple[str, str, str]], text: bytes, ends: NDArray[np.int64], numbers: NDArray[np.int32]
    ) -> None:
        self._kinds = kinds  # folder, label and split that some rows have in common
        self._text = text  # name and group of each row, with a zero between them
        self._ends = ends  # place of each row's text, and the end of the last, (n + 1,)
        self._numbers = numbers  # kind of each row, (n,)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._numbers)

    def __getitem__(self, at: int) -> Row:
        """Return one row."""
        folder, label, split = self._kinds[self._numbers[at]]
        name, _, group = self._part(at).partition("\0")
        return Row(Path(folder, name), label, split, group)

    def __iter__(self) -> Iterator[Row]:
        """Yield all rows."""
        return map(self.__getitem__, range(len(self)))

    def take(self, indices: NDArray[np.int64], split: str | None = None) -> "Rows":
        """Return the rows at `indices`, in the order of `indices`; with a split, that of each."""
        taken = Rows()
        kinds = self._kinds if split is None else [(folder, label, split) for folder, label, _ in self._kinds]
        text = b"".join(self._text[self._ends[at] : self._ends[at + 1]] for at in indices.tolist())
        ends = np.concatenate([[0], np.cumsum(np.diff(self._ends)[indices])])
        taken._set(kinds, text, ends, self._numbers[indices])
        return taken

    def __add__(self, other: "Rows") -> "Rows":
        """Return these rows and the others behind them."""
        both = Rows()
        ends = np.concatenate([self._ends, self._ends[-1] + other._ends[1:]])
        numbers = np.concatenate([self._numbers, other._numbers + np.int32(len(self._kinds))])
        both._set([*self._kinds, *other._kinds], self._text + other._text, ends, numbers)
        return both

    def kinds(self) -> set[tuple[str, str]]:
        """Return the different pairs of a label and a split."""
        return {self._kinds[number][1:] for number in np.unique(self._numbers).tolist()}

    def labels(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the index of each row's label among the classes, (n,)."""
        numbers = {name: number for number, name in enumerate(classes)}
        return np.array([numbers.get(label, -1) for _, label, _ in self._kinds], np.int64)[self._numbers]

    def having(self, *splits: str) -> NDArray[np.int64]:
        """Return the sorted indices of the rows that have one of these splits."""
        return np.flatnonzero(np.array([split in splits for *_, split in self._kinds], bool)[self._numbers])

    def groups(self) -> list[str]:
        """Return the group of each row, "" for none."""
        return [self._part(at).partition("\0")[2] for at in range(len(self))]

    def root(self) -> str:
        """Return the folder that holds all files, in folders of its own or not."""
        folders: set[str] = {self._kinds[number][0] for number in np.unique(self._numbers).tolist()}
        return os.path.commonpath(folders)

    def is_utf8(self) -> bool:
        """Return whether all texts can be written as UTF-8: a name on a disk may be any bytes."""
        try:
            self._text.decode()
            "".join(part for kind in self._kinds for part in kind).encode()
        except UnicodeError:
            return False
        return True

    def _part(self, at: int) -> str:
        at = range(len(self))[at]
        start, end = map(int, self._ends[at : at + 2])
        return self._text[start:end].decode(errors="surrogatepass")


class FileNames(Sequence[str]):
    """The files of rows, relative to the folder of all of them."""

    def __init__(self, rows: Rows) -> None:
        """Name the files of these rows."""
        self._rows = rows
        self._root = rows.root() if len(rows) else ""

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._rows)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        """Return one name, or several."""
        if isinstance(at, slice):
            return [self[one] for one in range(len(self))[at]]
        return os.path.relpath(self._rows[at].path, self._root)


def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")
