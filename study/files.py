"""Write files and directories whole or not at all, and keep no temporary directory of a killed process.

A crash or a full disk leaves what was there before.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of a draft; a draft that a killed process left behind may be removed."""
SCRATCH = "study-"
SCRATCH_NAME = re.compile(SCRATCH + "[a-z0-9_]{8}")
"""Name of a scratch directory, as `tempfile` makes it."""
YOUNG_S = 60.0
"""Seconds after which a scratch directory that is not locked counts as left behind; locking a new one takes less."""


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


def make_room(
    entries: Iterable[tuple[int, int, Path]], size: int, limit_bytes: int, remove: Callable[[Path], bool]
) -> int:
    """Remove the least recently used entries of a bounded directory until `size` more bytes fit.

    Args:
        entries: time of the last use, size in bytes and path of each entry.
        size: bytes to make room for.
        limit_bytes: bound on the size of everything together.
        remove: function that removes an entry; it returns False if the entry is in use.

    Returns:
        The bytes that are still lacking; 0 if there is room.
    """
    known = sorted(entries)
    total = size + sum(entry_bytes for _, entry_bytes, _ in known)
    for _, entry_bytes, path in known:
        if total <= limit_bytes:
            break
        if remove(path):
            total -= entry_bytes
    return max(0, total - limit_bytes)


def flush(path: Path) -> None:
    """Bring a file or a directory to the disk.

    Raises:
        OSError: the disk is full or damaged.
    """
    flush_and_close(os.open(path, os.O_RDONLY))


def flush_and_close(descriptor: int) -> None:
    """Bring an open file or directory to the disk, and close it.

    Raises:
        OSError: the disk is full or damaged.
    """
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """Yield an empty directory for temporary files, and remove it at the end.

    Also remove those that killed processes of this user left behind in the same parent: a process that lives holds a
    lock on its directory.

    Args:
        parent: directory in which to make it; None for the system's temporary directory.

    Raises:
        OSError: the directory cannot be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    _remove_left_behind(parent)
    directory = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
    try:
        with _locked(directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _remove_left_behind(parent: Path) -> None:
    for entry in os.scandir(parent):
        if not SCRATCH_NAME.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):  # another process removes it, or uses it
            facts = entry.stat(follow_symlinks=False)
            if facts.st_uid == os.getuid() and time.time() - facts.st_mtime > YOUNG_S:
                with _locked(Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; the system releases it when the process dies.

    Raises:
        OSError: another process holds the lock, or the directory is gone.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
