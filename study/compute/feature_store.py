"""Cache the frozen prefix's outputs on disk: the first trial that needs them computes them, all others read them.

This module owns the locks, the size limit and the decision whether storing saves time. It does not know what a file
holds, nor models: the caller gives a key, an order of images, and a function that computes the outputs for any part of
that order.
"""

import itertools
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from torch import Tensor

from study.compute.feature_file import HEADER_BYTES, Key, Loaded, Span, Unreadable, read_segment, write_segment
from study.config.paths import cache_directory
from study.files import make_room, replace_file

SEGMENT = 256
"""Images per file, a multiple of the caller's chunk size. A trial waits for one segment before its first step. Trials
that need the same epoch at the same time divide its segments among them. The next segment is read during training."""

PATIENCE_S = 300.0
"""Seconds to wait for a segment from another process, which may be suspended, before it is computed here as well."""

MAX_LIMIT_BYTES = 50 * 10**9
"""Upper bound on the default size limit."""

Source = Literal["read", "stored", "computed", "unstored"]
"""Source of outputs: read from the store; computed and stored; only computed, since storing is not worthwhile; not
stored, since the store does not work."""

Compute = Callable[[Tensor], Iterator[Tensor]]
"""Function from an order of images to their outputs, in chunks of equal size except for the last chunk."""

_Ahead = Future[Loaded | None] | None
"""A segment that is being read ahead; None if there is no further segment or the store is no longer used."""


class _Outputs:
    """Outputs of an epoch, computed on demand. To continue where the last call stopped costs nothing extra."""

    def __init__(self, order: Tensor, compute: Compute) -> None:
        self.images = len(order)
        self._order = order
        self._compute = compute
        self._chunks: Iterator[Tensor] = iter(())
        self._at = -1
        self.compute_s = 0.0
        """Seconds spent on chunks that were copied to the host."""

    def between(self, start: int, stop: int, *, to_host: bool = False) -> Iterator[Tensor]:
        if start != self._at:
            self._at = start
            self._chunks = self._compute(self._order[start:])
        while self._at < stop:
            started = time.perf_counter()
            chunk = next(self._chunks)
            self._at += len(chunk)
            if to_host:
                chunk = chunk.cpu()  # waits for the device, so that compute_s includes its work
                self.compute_s += time.perf_counter() - started
            yield chunk


class _NoRoom(Exception):
    """A segment does not fit into the store at the moment."""


class FeatureStore:
    """A directory of outputs of frozen prefixes, shared by all processes and studies that use it.

    An epoch is kept as safetensors files of SEGMENT images. A missing segment is computed under a lock; meanwhile,
    other processes that need it compute a later segment for both, or wait. A damaged file is computed again; a file
    that cannot be read for the moment is left alone. A full disk or an unwritable directory turns the store off for the
    lifetime of this object, with one warning.
    """

    def __init__(self, directory: Path, limit_bytes: int, *, patience_s: float = PATIENCE_S, tolerance_s: float = 1.0):
        """Open the store. Nothing is created on disk before the first output is stored.

        Args:
            directory: directory of the files, which need not exist yet.
            limit_bytes: bound on the size of all files together. The least recently used files are removed first, but
                not those that are used as often as what would replace them.
            patience_s: seconds, see PATIENCE_S.
            tolerance_s: seconds that files may be slower in total than computing. Then the store is no longer used.
        """
        self.directory = directory
        self.limit_bytes = limit_bytes
        self.tally: Counter[Source] = Counter()
        """Number of images by the source of their outputs, since this object was created."""
        self.failure: str | None = None
        """Why the store is turned off; None while it works."""
        self._patience_s = patience_s
        self._tolerance_s = tolerance_s
        self._lost_s: dict[Key, float] = {}
        self._asked_ns: dict[Key, tuple[int, int | None]] = {}
        """When each key was asked for last, and when before that, as file times in nanoseconds."""
        self._full: set[Key] = set()
        """Keys for which there was no room since they were last asked for."""
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        """Starts its thread at the first request, and ends the thread with this object."""

    def stream(
        self, key: Key, order: Tensor, compute: Compute, rest: Tensor | None = None, *, counted: bool = True
    ) -> Iterator[Tensor]:
        """Return the outputs for the images `order`; stored outputs are in host memory.

        A thread reads stored segments ahead: the first one from this call on, each further one while the caller takes
        the one before it. Nothing is computed before the caller takes the first chunk.

        Args:
            key: key of the outputs, which determines `order` and `compute`.
            order: indices of images, (n,) int64.
            compute: function that yields outputs. Its argument is `order` without its first segments, if any.
            rest: `order` without its first segments, to begin after them; None to begin at the first image.
            counted: whether these images count in the tally.

        Returns:
            The same chunks in the same memory layout from every source. They may be mapped from a file.
        """
        self._asked_ns[key] = (time.time_ns(), self._asked_ns.get(key, (0, None))[0] or None)
        self._full.discard(key)
        spans = self._spans(key, order)[0 if rest is None else (len(order) - len(rest)) // SEGMENT :]
        return self._stream(key, spans, _Outputs(order, compute), self._read_ahead(key, spans), counted=counted)

    def _stream(
        self, key: Key, spans: Sequence[Span], outputs: _Outputs, ahead: _Ahead, *, counted: bool
    ) -> Iterator[Tensor]:
        for index, span in enumerate(spans):
            later = spans[index + 1 :]
            source, chunks = self._obtain(key, span, later, outputs, ahead)
            ahead = self._read_ahead(key, later)
            if counted:
                self.tally[source] += span.stop - span.start
            yield from chunks

    def holds(self, key: Key, order: Tensor) -> bool:
        """Return whether all outputs for the images `order` are stored, by the files' names alone."""
        return self._pays(key) and all(os.path.exists(span.path) for span in self._spans(key, order))

    def _spans(self, key: Key, order: Tensor) -> list[Span]:
        stem = key.digest
        return [
            Span(self.directory / f"{stem}-{start}.safetensors", start, min(start + SEGMENT, len(order)))
            for start in range(0, len(order), SEGMENT)
        ]

    def _obtain(
        self, key: Key, span: Span, later: Sequence[Span], outputs: _Outputs, ahead: _Ahead
    ) -> tuple[Source, Iterator[Tensor]]:
        """Return a segment's source and chunks."""
        if self._pays(key):
            try:
                if chunks := self._read(key, span, ahead):
                    return "read", iter(chunks)
                source = self._share(key, span, later, outputs)
                if source and (chunks := self._read(key, span)):
                    return source, iter(chunks)
            except Unreadable:
                pass
            except (OSError, NotImplementedError) as error:  # the latter if the file system has no locks
                self._turn_off(error)
        return "unstored" if self.failure else "computed", outputs.between(span.start, span.stop)

    def _pays(self, key: Key) -> bool:
        return self.failure is None and self._lost_s.get(key.kind, 0.0) <= self._tolerance_s

    def _weigh(self, key: Key, *, compute_s: float, file_s: float) -> None:
        """Sum up the seconds by which files were slower than computing. A gain reduces this sum, but never below 0."""
        self._lost_s[key.kind] = max(0.0, self._lost_s.get(key.kind, 0.0) + file_s - compute_s)

    def _share(self, key: Key, span: Span, later: Sequence[Span], outputs: _Outputs) -> Source | None:
        """Store a segment if possible. While another process computes the segment, compute later ones."""
        while (source := self._ensure(key, span, outputs, timeout_s=0)) is None and self._pays(key):
            missing = (ahead for ahead in later if not ahead.path.exists())
            if not any(self._ensure(key, ahead, outputs, timeout_s=0) in ("read", "stored") for ahead in missing):
                return self._ensure(key, span, outputs, timeout_s=self._patience_s)
        return source

    def _ensure(self, key: Key, span: Span, outputs: _Outputs, *, timeout_s: float) -> Source | None:
        """Store a missing segment; 'computed' if there is no room for it, None if another process holds its lock."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with FileLock(span.lock, timeout=timeout_s):
                try:
                    if span.path.exists():
                        return "read"
                    return "stored" if self._store(key, span, outputs) else "computed"
                finally:
                    # Any process that takes this lock later looks for the segment first.
                    with suppress(OSError):
                        span.lock.unlink()
        except Timeout:
            return None

    def _store(self, key: Key, span: Span, outputs: _Outputs) -> bool:
        """Compute a segment into its file; return False if it does not fit or was removed meanwhile."""
        if key in self._full:
            return False
        started, computed_before_s = time.perf_counter(), outputs.compute_s
        chunks = outputs.between(span.start, span.stop, to_host=True)
        first = next(chunks)
        if HEADER_BYTES + (first[0].nbytes + 1) * outputs.images > self.limit_bytes:
            self._lost_s[key.kind] = float("inf")
            return False

        def compute_s() -> float:
            return outputs.compute_s - computed_before_s

        try:
            with replace_file(span.path) as draft:
                self._reserve(draft, HEADER_BYTES + first[0].nbytes * (span.stop - span.start), key)
                write_segment(draft, key, itertools.chain([first], chunks), compute_s)
        except _NoRoom:
            self._full.add(key)
            return False
        except FileNotFoundError:  # somebody has emptied the directory
            return False
        self._weigh(key, compute_s=compute_s(), file_s=time.perf_counter() - started - compute_s())
        return True

    def _read_ahead(self, key: Key, spans: Sequence[Span]) -> _Ahead:
        """Start to read the first of the segments in the thread, if there is one and reading is worthwhile."""
        return self._reader.submit(read_segment, key, spans[0]) if spans and self._pays(key) else None

    def _read(self, key: Key, span: Span, ahead: _Ahead = None) -> Sequence[Tensor] | None:
        """Return a segment's chunks from its file, or None. Only the seconds spent waiting here count as file time.

        Raises:
            Unreadable: the file cannot be read for the moment, here or in the thread; see `read_segment`.
        """
        started = time.perf_counter()
        # A segment that was missing when read ahead may have been stored since by another process.
        loaded = (ahead.result() if ahead else None) or read_segment(key, span)
        if loaded is None:
            return None
        self._weigh(key, compute_s=loaded.compute_s, file_s=time.perf_counter() - started)
        return loaded.chunks

    def _reserve(self, draft: Path, size: int, key: Key) -> None:
        """Create a file of this size, which counts against the limit at once, and evict the least recently used files.

        If `key` was asked for before, files that were used since then stay, by the rule of `DeviceMemory`: where the
        epochs of a trial do not fit together, each trial finds those that fit.

        Raises:
            _NoRoom: files that stay, and unfinished files of other processes, take too much of the limit.
        """
        _, asked_before_ns = self._asked_ns.get(key, (0, None))
        with FileLock(self.directory / "room.lock", timeout=self._patience_s):
            entries = []
            staying = 0
            for path in self.directory.iterdir():
                with suppress(FileNotFoundError):  # renamed or evicted just now
                    stat = path.stat()
                    if path.suffix == ".safetensors" and asked_before_ns and stat.st_mtime_ns >= asked_before_ns:
                        staying += stat.st_size
                    elif path.suffix == ".safetensors":
                        entries.append((stat.st_mtime_ns, stat.st_size, path))
                    elif path.suffix == ".partial" and not self._remove_if_abandoned(path):
                        staying += stat.st_size
            if size + staying > self.limit_bytes or make_room(entries, size + staying, self.limit_bytes, _evict):
                raise _NoRoom
            with open(draft, "xb") as file:
                file.truncate(size)

    def _remove_if_abandoned(self, partial: Path) -> bool:
        """Remove an unfinished file if no process holds its lock, since the process that computed it has died."""
        lock = self.directory / f"{partial.name.partition('.')[0]}.lock"
        try:
            with FileLock(lock, timeout=0):
                partial.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def _turn_off(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self.failure = f"{self.directory}: must be writable and have room, but got {reason!r}."
        warnings.warn(f"{self.failure} Features are now computed without the store.", RuntimeWarning, stacklevel=2)


def _evict(segment: Path) -> bool:
    segment.unlink(missing_ok=True)  # a process that has mapped the file keeps its contents
    return True


def default_directory() -> Path:
    """Return the directory of the features of all studies of this user."""
    return cache_directory() / "features"


def default_limit_bytes(directory: Path) -> int:
    """Return a fifth of the disk space that is free or already used by the store, at most MAX_LIMIT_BYTES."""
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        room = shutil.disk_usage(existing).free
        for path in directory.glob("*.safetensors"):
            with suppress(OSError):  # another process has just evicted it
                room += path.stat().st_size
    except OSError:  # for instance no access to a parent: the store will warn and turn itself off
        return MAX_LIMIT_BYTES
    return min(room // 5, MAX_LIMIT_BYTES)
