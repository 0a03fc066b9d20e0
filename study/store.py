"""Keeps the frozen prefix's outputs on disk: who needs them first computes them, everybody else reads them.

Owns files, locks, the bound on their size and the judgement whether storing pays. What is stored and how it is
computed is the caller's: a key, an order of images, and a function that computes any part of it.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import secrets
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import platformdirs
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from torch import Tensor

FORMAT = 2
"""Of the files, and of all that computes what is in them: to be raised with any change to either."""
SEGMENT = 256
"""Images a file, a multiple of the caller's chunks. A trial waits for one segment before its first step, and trials
that need an epoch at the same time share out its segments; one is read ahead while the one before it is trained on."""
PATIENCE_S = 300.0
"""After which a segment that another process is computing is computed here as well: that process may be suspended."""
MAX_LIMIT_BYTES = 50 * 10**9
_HEADER_BYTES = 4096
"""Before the values: a page, so that they lie in memory as aligned as a tensor of torch's own."""
_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}

Source = Literal["read", "stored", "computed", "unstored"]
"""Read from the store; computed and stored; computed on the fly, because storing does not pay; or does not work."""
Compute = Callable[[Tensor], Iterator[Tensor]]
"""From an order of images to their outputs, in chunks of one size, the last one aside."""


@dataclass(frozen=True)
class Key:
    """All that the outputs for one epoch of one set of images depend on."""

    model: str
    weights: str
    """Digest of the prefix's tensors."""
    unfreeze_depth: int
    image_size: int
    images: str
    """The set's fingerprint."""
    order: str
    """Digest of the order in which the epoch goes through the set."""
    augmentation: str
    seed: int
    """Of the augmentation, like the epoch; both 0 where there is none, so that one entry serves all epochs."""
    epoch: int
    precision: str
    machine: str
    """The hardware and software whose arithmetic it is."""
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """Return 64 hexadecimal digits: the stem of the files' names."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()

    @property
    def kind(self) -> "Key":
        """Return what the keys of all epochs of a trial have in common: what is known of one holds for the others."""
        return dataclasses.replace(self, order="", seed=0, epoch=0)


class _Span(NamedTuple):
    """A segment of an epoch: its images [start, stop) are in one file."""

    path: Path
    start: int
    stop: int

    @property
    def lock(self) -> Path:
        """The file that is locked, and there, while a process computes the segment."""
        return self.path.with_suffix(".lock")


class _Loaded(NamedTuple):
    """A segment that was read."""

    chunks: Sequence[Tensor]
    compute_s: float
    """Seconds that computing it had taken."""


_Ahead = Future[_Loaded | None] | None
"""A segment that is being read ahead; None where none is, or where the store is given up."""


class _Outputs:
    """An epoch's outputs as they are computed; going on where the last call stopped costs nothing."""

    def __init__(self, order: Tensor, compute: Compute) -> None:
        self.images = len(order)
        self._order = order
        self._compute = compute
        self._chunks: Iterator[Tensor] = iter(())
        self._at = -1
        self.compute_s = 0.0
        """Seconds spent on what was yielded to the host."""

    def between(self, start: int, stop: int, *, to_host: bool = False) -> Iterator[Tensor]:
        if start != self._at:
            self._at = start
            self._chunks = self._compute(self._order[start:])
        while self._at < stop:
            started = time.perf_counter()
            chunk = next(self._chunks)
            self._at += len(chunk)
            if to_host:
                chunk = chunk.cpu()  # waits for the device, so that the seconds are all there
                self.compute_s += time.perf_counter() - started
            yield chunk


class FeatureStore:
    """Outputs of frozen prefixes in files of a directory, shared by all processes and studies that use it.

    An epoch is kept as safetensors files of SEGMENT images. What cannot be read is computed under a lock, while
    others that need it compute a later segment for both, or wait. Damaged files are computed again, those that only
    cannot be read now are left alone; a full disk or an unwritable directory turns the store off, with one warning, for
    as long as this object lives.
    """

    def __init__(self, directory: Path, limit_bytes: int, *, patience_s: float = PATIENCE_S, tolerance_s: float = 1.0):
        """Open the store; nothing is created before the first output is stored.

        Args:
            directory: of the files; may not exist yet.
            limit_bytes: bound on all files together; the least recently used go first.
            patience_s: see PATIENCE_S.
            tolerance_s: seconds that storing or reading may lose against computing before it is given up.
        """
        self.directory = directory
        self.limit_bytes = limit_bytes
        self.tally: Counter[Source] = Counter()
        """Images by where their outputs came from, since this object was made."""
        self.failure: str | None = None
        """Why the store has turned itself off; None while it works."""
        self._patience_s = patience_s
        self._tolerance_s = tolerance_s
        self._lost_s: dict[Key, float] = {}
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        """Starts its thread when first asked, and ends it with this object."""

    def stream(
        self, key: Key, order: Tensor, compute: Compute, rest: Tensor | None = None, *, counted: bool = True
    ) -> Iterator[Tensor]:
        """Return the outputs for the images `order`, in host memory where they were stored.

        What is stored is read ahead in a thread: the first segment from this call on, each other one while the one
        before it is taken. Nothing is computed before the first chunk is asked for.

        Args:
            key: of the outputs; `order` and `compute` are functions of it.
            order: (n,) int64, indices of images.
            compute: called with `order` from some multiple of SEGMENT on.
            rest: `order` from some multiple of SEGMENT on, to begin there; None to begin at the first image.
            counted: whether these images are to stand in the tally.

        Returns:
            The same chunks in the same memory layout, wherever they come from; they may be mapped from a file.
        """
        spans = self._spans(key, order)[0 if rest is None else (len(order) - len(rest)) // SEGMENT :]
        return self._stream(key, spans, _Outputs(order, compute), self._read_ahead(key, spans), counted=counted)

    def _stream(
        self, key: Key, spans: Sequence[_Span], outputs: _Outputs, ahead: _Ahead, *, counted: bool
    ) -> Iterator[Tensor]:
        for index, span in enumerate(spans):
            later = spans[index + 1 :]
            source, chunks = self._obtain(key, span, later, outputs, ahead)
            ahead = self._read_ahead(key, later)
            if counted:
                self.tally[source] += span.stop - span.start
            yield from chunks

    def holds(self, key: Key, order: Tensor) -> bool:
        """Tell whether all outputs for the images `order` are stored, as far as a look at the files' names can."""
        return self._pays(key) and all(os.path.exists(span.path) for span in self._spans(key, order))

    def _spans(self, key: Key, order: Tensor) -> list[_Span]:
        stem = key.digest
        return [
            _Span(self.directory / f"{stem}-{start}.safetensors", start, min(start + SEGMENT, len(order)))
            for start in range(0, len(order), SEGMENT)
        ]

    def _obtain(
        self, key: Key, span: _Span, later: Sequence[_Span], outputs: _Outputs, ahead: _Ahead
    ) -> tuple[Source, Iterator[Tensor]]:
        """Return a segment's chunks and where they come from."""
        if self._pays(key):
            try:
                if chunks := self._read(key, span, ahead):
                    return "read", iter(chunks)
                source = self._share(key, span, later, outputs)
                if source and (chunks := self._read(key, span)):
                    return source, iter(chunks)
            except _Unreadable:
                pass
            except (OSError, NotImplementedError) as error:  # the latter where the file system has no locks
                self._turn_off(error)
        return "unstored" if self.failure else "computed", outputs.between(span.start, span.stop)

    def _pays(self, key: Key) -> bool:
        return self.failure is None and self._lost_s.get(key.kind, 0.0) <= self._tolerance_s

    def _judge(self, key: Key, *, compute_s: float, file_s: float) -> None:
        """Keep count of the seconds lost to files that were slower than computing; a gain makes up for losses only."""
        self._lost_s[key.kind] = max(0.0, self._lost_s.get(key.kind, 0.0) + file_s - compute_s)

    def _share(self, key: Key, span: _Span, later: Sequence[_Span], outputs: _Outputs) -> Source | None:
        """See to it that a segment is stored, if it can be. While another process computes it, work ahead."""
        while (source := self._ensure(key, span, outputs, timeout_s=0)) is None and self._pays(key):
            missing = (ahead for ahead in later if not ahead.path.exists())
            if not any(self._ensure(key, ahead, outputs, timeout_s=0) in ("read", "stored") for ahead in missing):
                return self._ensure(key, span, outputs, timeout_s=self._patience_s)
        return source

    def _ensure(self, key: Key, span: _Span, outputs: _Outputs, *, timeout_s: float) -> Source | None:
        """Store a segment unless another process has; 'computed' if there is no room for it, None if that is at it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with FileLock(span.lock, timeout=timeout_s):
                try:
                    if span.path.exists():
                        return "read"
                    return "stored" if self._store(key, span, outputs) else "computed"
                finally:
                    # Whoever still waits for this lock looks for the segment first, and so does whoever comes later.
                    with suppress(OSError):
                        span.lock.unlink()
        except Timeout:
            return None

    def _store(self, key: Key, span: _Span, outputs: _Outputs) -> bool:
        """Compute a segment into its file; False if it would not fit, or vanished meanwhile."""
        started, computed_before_s = time.perf_counter(), outputs.compute_s
        chunks = outputs.between(span.start, span.stop, to_host=True)
        first = next(chunks)
        image_bytes = first[0].numel() * first.element_size()
        if (image_bytes + 1) * outputs.images + _HEADER_BYTES > self.limit_bytes:
            self._lost_s[key.kind] = float("inf")
            return False
        layout = _layout(first)
        checksum = 0
        partial = span.path.with_suffix(f".{secrets.token_hex(4)}.partial")
        try:
            if not self._reserve(partial, _HEADER_BYTES + image_bytes * (span.stop - span.start)):
                return False
            with open(partial, "r+b") as file:
                file.seek(_HEADER_BYTES)
                for chunk in itertools.chain([first], chunks):
                    values = chunk.permute(layout).contiguous()
                    checksum += _checksum(values)
                    file.write(values.view(torch.uint8).numpy().data)
                compute_s = outputs.compute_s - computed_before_s
                shape = (span.stop - span.start, *values.shape[1:])
                facts = {
                    "key": dataclasses.asdict(key),
                    "chunk": len(first),
                    "layout": layout,
                    "checksum": checksum % 2**64,
                    "compute_s": compute_s,
                }
                file.seek(0)  # last: until here nobody takes it for an entry
                file.write(_header(shape, _DTYPES[first.dtype], image_bytes, facts))
            os.replace(partial, span.path)
        except FileNotFoundError:  # somebody empties the directory
            return False
        finally:
            partial.unlink(missing_ok=True)
        self._judge(key, compute_s=compute_s, file_s=time.perf_counter() - started - compute_s)
        return True

    def _read_ahead(self, key: Key, spans: Sequence[_Span]) -> _Ahead:
        """Begin to read the first of the segments in the thread."""
        return self._reader.submit(_load, key, spans[0]) if spans and self._pays(key) else None

    def _read(self, key: Key, span: _Span, ahead: _Ahead = None) -> Sequence[Tensor] | None:
        """Return a segment's chunks from its file, or None; the seconds that count are those waited for it here.

        Raises:
            _Unreadable: as `_load` does, also where it was read ahead.
        """
        started = time.perf_counter()
        # What was not there ahead of time may have come since, from another process.
        loaded = (ahead.result() if ahead else None) or _load(key, span)
        if loaded is None:
            return None
        self._judge(key, compute_s=loaded.compute_s, file_s=time.perf_counter() - started)
        return loaded.chunks

    def _reserve(self, partial: Path, size: int) -> bool:
        """Create a file of this size, which counts from now on, and evict for it what was not used for longest.

        Returns:
            False, and there is no file, where too much of the room is other processes' unfinished work.
        """
        with FileLock(self.directory / "room.lock", timeout=self._patience_s):
            entries = []
            total = size
            for path in self.directory.iterdir():
                with suppress(FileNotFoundError):  # finished or evicted just now
                    stat = path.stat()
                    if path.suffix == ".safetensors":
                        entries.append((stat.st_mtime_ns, stat.st_size, path))
                        total += stat.st_size
                    elif path.suffix == ".partial" and not self._remove_if_abandoned(path):
                        total += stat.st_size
            for _, entry_bytes, path in sorted(entries):
                if total <= self.limit_bytes:
                    break
                path.unlink(missing_ok=True)  # who has it mapped keeps it
                total -= entry_bytes
            if total > self.limit_bytes:
                return False
            with open(partial, "xb") as file:
                file.truncate(size)
            return True

    def _remove_if_abandoned(self, partial: Path) -> bool:
        """Remove what a process left that died while it computed: nobody holds the lock."""
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
        warnings.warn(f"{self.failure} Features are computed anew from here on.", RuntimeWarning, stacklevel=2)


class _Unreadable(Exception):
    """A file cannot be read now, through no fault of its own."""


def _load(key: Key, span: _Span) -> _Loaded | None:
    """Map a segment's file, checked to its last bit; None if there is none, or no sound one, which is removed.

    Raises:
        _Unreadable: memory or file handles have run out, or the disk fails: the file itself may be sound.
    """
    if not os.path.lexists(span.path):
        return None
    try:
        if not span.path.is_file():
            raise ValueError("neither a file nor a link to one")
        # Tells what is the matter where safetensors would say that there is no file, and waits for the disk without
        # holding up other threads, which safetensors would.
        with open(span.path, "rb") as opened:
            opened.read(_HEADER_BYTES)
        with safe_open(span.path, framework="pt") as file:
            facts = json.loads(file.metadata()["study"])
            values = file.get_tensor("features")
        if facts["key"] != dataclasses.asdict(key) or len(values) != span.stop - span.start:
            raise ValueError("another key")
        if facts["checksum"] != _checksum(values) % 2**64:
            raise ValueError("other values than were written")
        chunks = values.permute(_inverse(facts["layout"])).split(facts["chunk"])
        loaded = _Loaded(chunks, facts["compute_s"])
    except FileNotFoundError:  # evicted just now
        return None
    except (OSError, MemoryError, RuntimeError) as error:  # the last is how torch says that it cannot map a file
        raise _Unreadable from error
    except Exception:  # damage makes the readers raise almost anything else
        span.path.unlink(missing_ok=True)
        return None
    with suppress(OSError):  # it may be gone, or another user's
        os.utime(span.path)
    return loaded


def default_directory() -> Path:
    """Return where the features of all of a user's studies are kept."""
    return platformdirs.user_cache_path("study") / "features"


def default_limit_bytes(directory: Path) -> int:
    """Return a fifth of the disk space that is free or the store's already, at most MAX_LIMIT_BYTES."""
    try:
        existing = next(path for path in (directory, *directory.parents) if path.exists())
        room = shutil.disk_usage(existing).free
        for path in directory.glob("*.safetensors"):
            with suppress(OSError):  # another process has just evicted it
                room += path.stat().st_size
    except OSError:  # as where a parent may not be entered: the store will say so itself, and turn itself off
        return MAX_LIMIT_BYTES
    return min(room // 5, MAX_LIMIT_BYTES)


def _layout(outputs: Tensor) -> list[int]:
    """Return the dimensions in the order in which they lie in memory, the images' first; channels-last: 0, 2, 3, 1."""
    return [0, *sorted(range(1, outputs.dim()), key=outputs.stride().__getitem__, reverse=True)]


def _inverse(layout: Sequence[int]) -> list[int]:
    return [layout.index(dimension) for dimension in range(len(layout))]


def _checksum(values: Tensor) -> int:
    """Sum the bytes eight at a time, at the memory's speed: any lost page and any flipped bit changes it.

    By NumPy, on the thread that asks: torch would start a second crew of threads for the one that reads ahead.
    """
    data = values.flatten().view(torch.uint8).numpy()
    whole = len(data) // 8 * 8
    return int(data[:whole].view(np.int64).sum()) + int(data[whole:].sum(dtype=np.int64))


def _header(shape: tuple[int, ...], dtype: str, image_bytes: int, facts: dict[str, Any]) -> bytes:
    """Return what safetensors puts before the values, filled up with spaces to _HEADER_BYTES."""
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, image_bytes * shape[0]]}
    text = json.dumps({"__metadata__": {"study": json.dumps(facts)}, "features": tensor}).encode()
    length = _HEADER_BYTES - 8
    assert len(text) <= length
    return length.to_bytes(8, "little") + text.ljust(length)
