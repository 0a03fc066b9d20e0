"""Keep decoded images on disk, so that each image file is decoded once: one pack for a source and a way to decode.

This module owns the files, their locks and their bound. It does not know how an image is decoded, nor labels and
splits: a pack knows an image file by its identity alone, and only grows, so that rows that a process knows stay valid.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from study.config.paths import cache_directory
from study.data.stored_pixels import HEADER_BYTES, StoredPixels, new_header, read_header
from study.files import make_room, replace_file

FORMAT = 1
"""Version of the files; a pack of another version has another name."""
SHARE = 0.5
"""Share of the disk space that is free, or used by the store, that the store may take."""
COMMIT_BYTES = 2**25
"""Bytes of images after which they are brought to the disk and entered in the index."""
SAMPLE = 16
"""Images of a pack whose checksums are compared when it is opened."""
PIXELS, INDEX, LOCK, HEADERS = "pixels", "index", "lock", "headers"
_ENTRY = np.dtype([("file", "V16"), ("checksum", "<u8")])
_FACT = np.dtype([("file", "V16"), ("width", "<u4"), ("height", "<u4"), ("deep", "<u4")])

Identity = bytes
"""Sixteen bytes that change when an image file changes; b"" for a file that cannot be found."""


class Unusable(Exception):
    """The store cannot be used: the directory or the disk does not allow it, in words."""


def identify(path: Path) -> Identity:
    """Return the identity of an image file: its path, its size, and the times of its last changes.

    The second time, which programs cannot set, also tells files apart that were put in place with an old time.
    """
    try:
        facts = os.stat(path)
    except OSError:
        return b""
    text = f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}"
    return blake2b(os.fsencode(text), digest_size=16).digest()


class PixelStore:
    """A directory of packs, shared by all processes and studies of a user."""

    def __init__(self, directory: Path, limit_bytes: int | None = None) -> None:
        """Open the store. Nothing is created on disk before the first pack is opened.

        Args:
            directory: directory of the packs, which need not exist yet.
            limit_bytes: bound on the size of all packs; None for SHARE of the disk space that is free or used by them.
        """
        self.directory = directory
        self._limit_bytes = limit_bytes

    @property
    def limit_bytes(self) -> int:
        """Bound on the size of all packs together."""
        if self._limit_bytes is not None:
            return self._limit_bytes
        existing = next(path for path in (self.directory, *self.directory.parents) if path.exists())
        used = sum(size for _, size, _ in self._entries())
        return int(SHARE * (shutil.disk_usage(existing).free + used))

    @contextmanager
    def open(self, source: str, about: dict[str, Any]) -> Iterator["Pack"]:
        """Open the pack of a source; the pack cannot be evicted before the end of the block.

        Args:
            source: absolute path of the images' folder or CSV file.
            about: everything besides the files that the decoded images depend on, as JSON values; "size" is the
                (width, height) of the images in pixels.

        Raises:
            Unusable: the directory cannot be written, or its file system has no locks.
        """
        about = {"format": FORMAT, "source": source, **about}
        folder = self._folder(source) / _digest(json.dumps(about, sort_keys=True))
        try:
            with self._room_lock():
                folder.mkdir(parents=True, exist_ok=True)
                pack = Pack.open(folder, about)
        except (OSError, NotImplementedError) as error:
            raise _unusable(self.directory, error) from error
        try:
            yield pack
        finally:
            pack.close()

    def reserve(self, pack: "Pack", images: int) -> int:
        """Evict the least recently used packs until so many more images fit; return the bytes that are lacking.

        Raises:
            Unusable: the directory cannot be read.
        """
        needed = images * pack.image_bytes
        try:
            with self._room_lock():
                os.utime(pack.folder)
                limit = self.limit_bytes
                lacking = make_room(self._entries(), needed, limit, _evict)
                free = shutil.disk_usage(self.directory).free
                return max(0, lacking, needed - free)
        except OSError as error:
            raise _unusable(self.directory, error) from error

    def clear(self) -> None:
        """Evict every pack that no process uses.

        Raises:
            OSError: the directory cannot be written.
        """
        with self._room_lock():
            for _, _, folder in self._entries():
                _evict(folder)

    def recall_headers(self, source: str, files: Sequence[Identity]) -> dict[Identity, tuple[int, int, bool]]:
        """Return the headers that are known, by file: width and height in pixels, and whether its grey has 16 bits."""
        try:
            data = (self._folder(source) / HEADERS).read_bytes()
        except OSError:
            return {}
        known = np.frombuffer(data[: len(data) // _FACT.itemsize * _FACT.itemsize], _FACT)
        wanted = {*files}
        return {file: (width, height, bool(deep)) for file, width, height, deep in known.tolist() if file in wanted}

    def keep_headers(self, source: str, headers: dict[Identity, tuple[int, int, bool]]) -> None:
        """Keep these headers of a source in place of those known so far. Where this fails, they are read again."""
        entries = np.array([(file, *facts) for file, facts in headers.items() if file], _FACT)
        with suppress(OSError):
            self._folder(source).mkdir(parents=True, exist_ok=True)
            with replace_file(self._folder(source) / HEADERS) as draft:
                draft.write_bytes(entries.tobytes())

    def _folder(self, source: str) -> Path:
        return self.directory / _digest(source)

    def _room_lock(self) -> FileLock:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self.directory / "room.lock")

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return the last use, the size in bytes and the directory of each pack."""
        entries = []
        for file in self.directory.glob(f"*/*/{PIXELS}"):
            with suppress(FileNotFoundError):  # evicted just now
                entries.append((file.parent.stat().st_mtime_ns, file.stat().st_size, file.parent))
        return entries


@dataclass(eq=False)
class Pack:
    """An open pack: a file of images, and beside it an index with the image file that each row was decoded from."""

    folder: Path
    mark: str
    size: tuple[int, int]
    """(width, height) of the images in pixels."""
    damaged: bool
    """Whether what was there before was damaged and is decoded again."""
    _pixels: int
    """Descriptor of the file of images, which holds a lock against eviction."""
    _index: int
    """Descriptor of the index."""
    _rows: dict[Identity, int] = field(default_factory=dict)
    _count: int = 0
    _pending: list[tuple[Identity, int]] = field(default_factory=list)
    """Identity and checksum of the images that are written and not yet in the index."""
    _committer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "commit"))
    _commit: Future[None] | None = None

    @classmethod
    def open(cls, folder: Path, about: dict[str, Any]) -> "Pack":
        """Open a pack, or make it; a pack that is damaged is made anew.

        Raises:
            OSError: the directory cannot be written, or the file system has no locks.
        """
        size = (int(about["size"][0]), int(about["size"][1]))
        damaged = False
        while True:
            descriptor = os.open(folder / PIXELS, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_size == 0:
                os.pwrite(descriptor, new_header(about), 0)
            header = read_header(descriptor)
            index = os.open(folder / INDEX, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            pack = cls(folder, str(header.get("mark", "")), size, damaged, descriptor, index)
            if {**header, "mark": ""} == {"mark": "", **json.loads(json.dumps(about))} and pack.refresh():
                os.utime(folder)
                return pack
            damaged = True
            pack.close()
            for file in folder.iterdir():
                if file.name != LOCK:
                    file.unlink(missing_ok=True)

    @property
    def image_bytes(self) -> int:
        """Size of one image."""
        return 3 * self.size[0] * self.size[1]

    @property
    def images(self) -> int:
        """Number of images."""
        return self._count

    def refresh(self) -> bool:
        """Read the index; return whether a sample of the images agrees with it."""
        data = os.pread(self._index, os.fstat(self._index).st_size, 0)
        whole = (os.fstat(self._pixels).st_size - HEADER_BYTES) // self.image_bytes
        self._count = max(0, min(len(data) // _ENTRY.itemsize, whole))
        entries = np.frombuffer(data[: self._count * _ENTRY.itemsize], _ENTRY)
        self._rows = {file: row for row, file in enumerate(entries["file"].tolist())}
        sample = {round(row) for row in np.linspace(0, self._count - 1, SAMPLE)} if self._count else set()
        return all(
            checksum(os.pread(self._pixels, self.image_bytes, self._place(row))) == entries["checksum"][row]
            for row in sample
        )

    @contextmanager
    def writing(self, *, timeout_s: float = -1) -> Iterator[None]:
        """Hold the lock of the only process that adds images; at the end of the block, what was added is committed.

        Raises:
            Timeout: another process holds the lock for longer.
            OSError: the disk is full or fails.
        """
        with FileLock(self.folder / LOCK, timeout=timeout_s):
            if not os.path.samestat(os.stat(self.folder / PIXELS), os.fstat(self._pixels)):
                raise OSError(errno.ESTALE, "another process has found it damaged")
            self.refresh()  # another process may have added images
            os.truncate(self._pixels, self._place(self._count))
            os.truncate(self._index, self._count * _ENTRY.itemsize)
            try:
                yield
            finally:
                self._flush()
                if self._commit:
                    self._commit.result()
                    self._commit = None

    def add(self, file: Identity, image: NDArray[np.uint8]) -> int:
        """Write an image (3, height, width) uint8 behind the others, and return its row.

        Raises:
            OSError: the disk is full or fails.
        """
        row = self._count
        data = image.reshape(-1)
        written = os.pwrite(self._pixels, data.data, self._place(row))
        if written < self.image_bytes:  # the disk is full: the second attempt says so
            os.pwrite(self._pixels, data.data[written:], self._place(row) + written)
        self._count += 1
        self._rows[file] = row
        self._pending.append((file, checksum(data)))
        if len(self._pending) * self.image_bytes >= COMMIT_BYTES:
            self._flush()
        return row

    def _flush(self) -> None:
        """Let a thread bring the written images to the disk, and only then enter them in the index."""
        entries, self._pending = self._pending, []
        if self._commit:
            self._commit.result()
        if entries:
            self._commit = self._committer.submit(self._enter, np.array(entries, _ENTRY).tobytes())

    def _enter(self, entries: bytes) -> None:
        os.fdatasync(self._pixels)
        os.write(self._index, entries)

    def rows_of(self, files: Sequence[Identity]) -> NDArray[np.int64]:
        """Return the row of each file's image; -1 for a file that has none."""
        return np.array([self._rows.get(file, -1) for file in files], np.int64)

    def pixels(self, rows: NDArray[np.int64]) -> StoredPixels:
        """Return the images of these rows."""
        return StoredPixels(self.folder / PIXELS, self.mark, self.size[::-1], rows)

    def close(self) -> None:
        """Release the pack."""
        self._committer.shutdown()
        os.close(self._pixels)
        os.close(self._index)

    def _place(self, row: int) -> int:
        return HEADER_BYTES + int(row) * self.image_bytes


def checksum(data: bytes | NDArray[np.uint8]) -> int:
    """Sum the bytes of an image eight at a time, at memory speed. A lost page or a flipped bit changes the sum."""
    values = np.frombuffer(data, np.uint8)
    whole = len(values) // 8 * 8
    total = int(values[:whole].view(np.uint64).sum(dtype=np.uint64)) + int(values[whole:].sum(dtype=np.uint64))
    return total % 2**64


def default_directory() -> Path:
    """Return the directory of the decoded images of all studies of this user."""
    return cache_directory() / "images"


def _digest(text: str) -> str:
    return blake2b(os.fsencode(text), digest_size=8).hexdigest()


def _evict(folder: Path) -> bool:
    """Remove a pack; return False if a process uses it."""
    with suppress(OSError, Timeout):
        descriptor = os.open(folder / PIXELS, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(descriptor)
        return True
    return False


def _unusable(directory: Path, error: Exception) -> Unusable:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Unusable(f"{directory}: must be writable and have room, but got {reason!r}.")
