"""Write files and directories whole or not at all: a crash or a full disk leaves what was there before."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a draft; a draft that a killed process left behind may be removed."""


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield the path of a draft beside `path`; when the block ends, the draft takes the place of `path`.

    If the block raises, the draft is removed and `path` stays as it was.

    Args:
        path: the file; its directory exists.

    Raises:
        OSError: the draft cannot be renamed.
    """
    draft = path.with_suffix(f".{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty draft directory; when the block ends, it gets the name `path`.

    The files in the draft are brought to the disk first, so that a loss of power cannot leave empty ones behind. If the
    block raises, the draft is removed.

    Args:
        path: the directory, which must not exist when the block ends; its parents are made.

    Raises:
        OSError: the directory cannot be made or renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)) / path.name
    try:
        draft.mkdir()
        yield draft
        for held in (*draft.iterdir(), draft):
            flush(held)
        draft.rename(path)
        flush(path.parent)
    finally:
        shutil.rmtree(draft.parent, ignore_errors=True)


def flush(path: Path) -> None:
    """Bring a file or a directory to the disk.

    Raises:
        OSError: the disk is full or damaged.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
