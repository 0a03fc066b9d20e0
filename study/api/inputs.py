"""Write images and tables that a program holds in memory to files, so that a study of them can resume.

They are written once, below `mlruns/inputs`, under a digest of their content.
"""

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from study.data.layouts import list_source
from study.errors import DataError, RecordError
from study.files import new_directory

if TYPE_CHECKING:
    import pandas as pd

Pictures = Sequence[Image.Image] | NDArray[np.uint8]
"""PIL images, or an array (n, height, width, 3) or (n, height, width) uint8."""
Labelled = tuple[Pictures, Sequence[Any] | NDArray[Any]]
"""Pictures and their labels, which are names of classes or numbers from 0."""
Data: TypeAlias = "str | Path | pd.DataFrame | Labelled | Mapping[str, Labelled]"
"""A data set: its name or place, a table, pictures, or pictures by split: train, test and perhaps val."""

COLUMNS = ("path", "label", "split", "group")
SPLITS = ("train", "val", "test")


def write_images(data: Any, mlruns: Path) -> Path:
    """Write a table or pictures below `mlruns`, unless they are there, and return the CSV file that lists them.

    Args:
        data: DataFrame with the columns path and label, and perhaps split and group; or a tuple of pictures and
            labels; or a mapping of splits (train, test, val) to such tuples.
        mlruns: directory of all runs.

    Raises:
        DataError: data is neither, or its parts do not fit together.
        RecordError: the files cannot be written.
    """
    if hasattr(data, "columns"):
        return _write(mlruns, "table", [*_table_rows(data)], {})
    parts = data if isinstance(data, Mapping) else {"": data}
    if odd := [str(split) for split in parts if split not in (*SPLITS, "")]:
        raise DataError(f"data: splits must be train, val and test, but got {', '.join(odd)}.")
    rows: list[dict[str, str]] = []
    pictures: dict[str, Image.Image] = {}
    for split, part in parts.items():
        for image, label in _pairs(split, part):
            name = f"{split or 'images'}/{len(pictures):07}.png"
            pictures[name] = image
            rows.append({"path": name, "label": label, **({"split": split} if split else {})})
    return _write(mlruns, "images", rows, pictures)


def _table_rows(table: "pd.DataFrame") -> Iterator[dict[str, str]]:
    columns = [name for name in COLUMNS if name in table.columns]
    if missing := [name for name in ("path", "label") if name not in columns]:
        found = ", ".join(map(str, table.columns))
        raise DataError(f"data: must have the columns path and label, but lacks {' and '.join(missing)} among {found}.")
    if repeated := [name for name in columns if [*table.columns].count(name) > 1]:
        raise DataError(f"data: must have each column once, but has {' and '.join(repeated)} several times.")
    for values in table[columns].itertuples(index=False):
        texts = ["" if value is None or value != value else str(value) for value in values]  # nan differs from itself
        row = dict(zip(columns, texts, strict=True))
        yield {**row, "path": str(Path(row["path"]).expanduser().absolute()) if row["path"] else ""}


def _pairs(split: str, part: Any) -> Iterator[tuple[Image.Image, str]]:
    """Yield each picture with the name of its class."""
    place = f"data[{split!r}]" if split else "data"
    if not isinstance(part, tuple | list) or len(part) != 2 or isinstance(part[0], str | Path):
        raise DataError(
            f"{place}: must be a folder, a CSV file, a DataFrame, (images, labels) or a mapping of train and test to"
            f" these, but got {type(part).__name__}."
        )
    images, labels = part
    if not all(isinstance(one, Sized) for one in part):
        kinds = " and ".join(type(one).__name__ for one in part)
        raise DataError(f"{place}: images and labels must be lists or arrays, but got {kinds}.")
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(f"{place}: needs a label for each image, but got {len(images)} images, {len(labels)} labels.")
    for image, label in zip(images, _names(labels, place), strict=True):
        yield to_image(image, place), label


def _names(labels: Iterable[Any], place: str) -> list[str]:
    """Return the names of classes; numbers get zeros in front, so that classes are ordered as the numbers are."""
    plain = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if all(isinstance(label, str) for label in plain):
        return plain
    if all(isinstance(label, int) and not isinstance(label, bool) and label >= 0 for label in plain):
        width = len(str(max(plain)))
        return [f"{label:0{width}}" for label in plain]
    raise DataError(f"{place}: labels must be all names, or all whole numbers from 0, but got {plain[0]!r} and others.")


def to_image(picture: Any, place: str) -> Image.Image:
    """Return a PIL image, or an array (height, width, 3) or (height, width) of uint8, as a PIL image.

    Raises:
        DataError: it is neither; `place` begins the message.
    """
    if isinstance(picture, Image.Image):
        return picture
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(
            f"{place}: images must be PIL images or uint8 arrays (height, width, 3), but got"
            f" {array.dtype} of shape {array.shape}."
        )
    return Image.fromarray(array)


def save_png(picture: Image.Image, file: Path) -> None:
    """Save a picture without loss, with the orientation that its camera noted."""
    plain = picture if picture.mode in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA") else picture.convert("RGB")
    plain.save(file, format="PNG", compress_level=1, exif=picture.getexif())


def _write(mlruns: Path, kind: str, rows: list[dict[str, str]], pictures: Mapping[str, Image.Image]) -> Path:
    digest = hashlib.sha256(repr(rows).encode(errors="surrogateescape"))
    for picture in pictures.values():
        digest.update(f"{picture.mode}{picture.size}{dict(picture.getexif())}".encode())
        digest.update(picture.tobytes())
    directory = mlruns / "inputs" / digest.hexdigest()[:12]
    table = f"{kind}.csv"  # a data set's name is that of the directory, and this
    if not directory.is_dir():
        try:
            with new_directory(directory) as draft:
                for path, picture in pictures.items():
                    (draft / path).parent.mkdir(exist_ok=True)
                    save_png(picture, draft / path)
                with open(draft / table, "w", encoding="utf-8", newline="") as lines:
                    writer = csv.DictWriter(lines, [*rows[0]] if rows else ["path", "label"])
                    writer.writeheader()
                    writer.writerows(rows)
                _check(draft / table)
        except OSError as error:
            raise RecordError(f"{directory}: must be writable and have room, but got: {error.strerror}.") from None
        finally:
            for empty in (directory.parent, mlruns):  # if the data was refused, and nothing else was there
                with suppress(OSError):
                    empty.rmdir()
    return directory / table


def _check(table: Path) -> None:
    """Check the table of a draft as a study will, so that no study finds a mistake in a file that its user never saw.

    Raises:
        DataError: its rows are wrong; the message counts them from 0, as pandas does.
    """
    try:
        list_source(table)
    except DataError as error:
        by_place = str(error).replace(str(table), "data")
        by_row = re.sub(r"(?<=^data: )line (\d+)", lambda at: f"row {int(at[1]) - 2}", by_place, flags=re.M)
        raise DataError(by_row) from None
