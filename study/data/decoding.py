"""Decode image files in parallel into the store, or into memory where the store is of no use; say the cost first.

Memory stays bounded when images go into the store. What was decoded before an interruption is kept there.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from study.data.image_files import READER, Header, read_header, read_image, try_to
from study.data.images import Pixels
from study.data.pixel_store import Identity, Pack, PixelStore, Unusable, identify
from study.errors import DataError
from study.formatting import format_duration
from study.limits import free_memory_bytes

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

SMALL_IMAGES, SMALL_BYTES = 1000, 2**24
"""Fewer images, of fewer bytes together, stay in memory: decoding them takes seconds, and a file gains nothing."""
FIRST = 100
"""Images from which the duration of all is estimated."""
WORTH_SAYING_S = 2.0
"""Seconds above which the cost is said."""
COPIES_IN_MEMORY = 2
"""How often images in memory are held: by the study itself, and for its trials."""
_BATCH = 64
"""Image files per request to a thread where each takes microseconds."""


class Watch(Protocol):
    """Callbacks for work on many images."""

    def on_remark(self, name: str, text: str) -> None:
        """Called with a line to print: its subject in one word, and a sentence."""

    def on_work(self, name: str, done: int, of: int) -> None:
        """Called while work goes on: its name in one word, and the number of images that are done and of all."""


class Unwatched:
    """Watch that says nothing."""

    def on_remark(self, name: str, text: str) -> None:
        """Do nothing."""

    def on_work(self, name: str, done: int, of: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Form:
    """How image files are decoded."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    fit: str
    """As in `read_image`."""
    grey_range: tuple[int, int]
    """16-bit grey values that become 0 and 255."""

    @property
    def image_bytes(self) -> int:
        """Size of one decoded image."""
        return 3 * self.size[0] * self.size[1]


@dataclass(frozen=True)
class Files:
    """Image files of a source, with their identities when the source was listed."""

    source: str
    """Absolute path of the folder or CSV file."""
    paths: Sequence[Path]
    identities: Sequence[Identity]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def take(self, indices: Sequence[int]) -> "Files":
        """Return the files at `indices`."""
        return Files(self.source, [self.paths[at] for at in indices], [self.identities[at] for at in indices])


def identify_files(source: Path, paths: Sequence[Path], pool: ThreadPoolExecutor) -> Files:
    """Return files with their identities."""
    parts = [paths[at : at + _BATCH] for at in range(0, len(paths), _BATCH)]
    identities = pool.map(lambda part: [identify(path) for path in part], parts)
    return Files(str(source.absolute()), paths, [*chain.from_iterable(identities)])


def read_headers(files: Files, pool: ThreadPoolExecutor, store: PixelStore | None) -> list[Header | DataError]:
    """Read the headers of image files; those of unchanged files come from the store."""
    known = store.recall_headers(files.source, files.identities) if store else {}
    missing = [at for at, file in enumerate(files.identities) if file not in known]
    read = dict(zip(missing, pool.map(lambda at: try_to(read_header, files.paths[at]), missing), strict=True))
    headers = []
    for at, file in enumerate(files.identities):
        header = read.get(at)
        if header is None:
            width, height, deep = known[file]
            header = Header((width, height), deep)
        headers.append(header)
    if store and any(isinstance(header, Header) for header in read.values()) and not is_small(len(files), 0):
        facts = {
            file: (*header.size, header.deep_grey)
            for file, header in zip(files.identities, headers, strict=True)
            if isinstance(header, Header)
        }
        store.keep_headers(files.source, facts)
    return headers


def is_small(images: int, image_bytes: int) -> bool:
    """Return whether images are so few and small that they stay in memory."""
    return images < SMALL_IMAGES and images * image_bytes < SMALL_BYTES


def decode_files(
    files: Files, form: Form, pool: ThreadPoolExecutor, *, store: PixelStore | None, watch: Watch
) -> tuple[Pixels, dict[int, DataError]]:
    """Decode image files, or find them decoded in the store.

    Args:
        files: files to decode.
        form: how to decode them.
        pool: threads that decode.
        store: store of decoded images; None for images in memory.
        watch: receiver of the cost and the progress.

    Returns:
        The images of all files that are whole, in the order of the files, and the errors of the others by their index.

    Raises:
        DataError: neither the disk nor the memory has room.
    """
    reason = ""
    if store and not is_small(len(files), form.image_bytes):
        try:
            return _decode_into_store(files, form, pool, store, watch)
        except Unusable as error:
            reason = str(error)
        except OSError as error:
            reason = f"{store.directory}: must be writable and have room, but got {error.strerror!r}."
    needed, free = COPIES_IN_MEMORY * len(files) * form.image_bytes, free_memory_bytes()
    if needed > free:
        place = reason or f"{files.source}: images must fit into memory without the store of decoded images."
        way = "Free disk space, set XDG_CACHE_HOME to a larger disk" if reason else "Leave out --no-cache"
        raise DataError(
            f"{place} In memory, {len(files):,} images of {form.size[0]}×{form.size[1]} px take {_gb(needed)}, but"
            f" {_gb(free)} are free. {way}, or lower --fraction or --image-size."
        )
    if reason:
        watch.on_remark("store", f"{reason} Decoded images are kept in memory: {_gb(needed)}")
    return _decode_to_memory(files, form, pool, f"{_gb(needed)} in memory", watch)


def _decode_to_memory(
    files: Files, form: Form, pool: ThreadPoolExecutor, cost: str, watch: Watch
) -> tuple[NDArray[np.uint8], dict[int, DataError]]:
    pixels = np.zeros((len(files), 3, form.size[1], form.size[0]), np.uint8)
    errors = {}
    for index, image in _decode(files, range(len(files)), form, pool, cost, watch):
        if isinstance(image, DataError):
            errors[index] = image
        else:
            pixels[index] = image
    return np.delete(pixels, [*errors], axis=0) if errors else pixels, errors


def _decode_into_store(
    files: Files, form: Form, pool: ThreadPoolExecutor, store: PixelStore, watch: Watch
) -> tuple[Pixels, dict[int, DataError]]:
    """Decode the files that the store lacks.

    Raises:
        Unusable: the store has no room, or does not work.
        OSError: the disk is full or fails.
    """
    about = {"size": [*form.size], "fit": form.fit, "grey_range": [*form.grey_range], "reader": READER}
    with store.open(files.source, about) as pack:
        if pack.damaged:
            watch.on_remark("store", f"{pack.folder}: was damaged, so the images are decoded again")
        rows = pack.rows_of(files.identities)
        errors: dict[int, DataError] = {}
        if missing := int((rows < 0).sum()):
            if lacking := store.reserve(pack, missing):
                needed = f"{_gb(missing * form.image_bytes)} of decoded images"
                raise Unusable(f"{store.directory}: must have room for {needed}, but lacks {_gb(lacking)}.")
            with _writing(pack, files, watch):
                rows = pack.rows_of(files.identities)
                cost = f"{_gb(int((rows < 0).sum()) * form.image_bytes)} on disk in {store.directory}, none in memory"
                for index, image in _decode(files, np.flatnonzero(rows < 0).tolist(), form, pool, cost, watch):
                    if isinstance(image, DataError):
                        errors[index] = image
                    else:
                        rows[index] = pack.add(files.identities[index], image)
        return pack.pixels(rows[rows >= 0]).hold(), errors


@contextmanager
def _writing(pack: Pack, files: Files, watch: Watch) -> Iterator[None]:
    """Hold the pack's lock; say so if another process holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(pack.writing(timeout_s=0))
        except Timeout:
            watch.on_remark("store", f"another process decodes {files.source}; this one waits for its images")
            stack.enter_context(pack.writing())
        yield


def _decode(
    files: Files, chosen: Sequence[int], form: Form, pool: ThreadPoolExecutor, cost: str, watch: Watch
) -> Iterator[tuple[int, NDArray[np.uint8] | DataError]]:
    """Yield the images at `chosen`, each with its index; after the first hundred, say what all of them cost."""
    started = time.perf_counter()
    read = _reader(files, form)
    for done, pair in enumerate(read_ahead(pool, lambda at: (at, read(at)), chosen), start=1):
        yield pair
        if done == FIRST and len(chosen) > FIRST:
            seconds = (time.perf_counter() - started) / FIRST * len(chosen)
            if seconds >= WORTH_SAYING_S:
                watch.on_remark(
                    "decode",
                    f"{len(chosen):,} images to {form.size[0]}×{form.size[1]} px: {cost}, about"
                    f" {format_duration(seconds)}",
                )
        if done >= FIRST:
            watch.on_work("decode", done, len(chosen))


def _reader(files: Files, form: Form) -> Callable[[int], NDArray[np.uint8] | DataError]:
    def read(at: int) -> NDArray[np.uint8] | DataError:
        path = files.paths[at]
        image = try_to(read_image, path, size=form.size, fit=form.fit, grey_range=form.grey_range)
        if not isinstance(image, DataError) and identify(path) != files.identities[at]:
            return DataError(f"{path}: must not change while the images are read, but did. Start again.")
        return image

    return read


def read_ahead(
    pool: ThreadPoolExecutor, function: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Iterator[_Result]:
    """Yield `function(item)` in order, a few items ahead; items that were not begun are dropped if the caller stops."""
    waiting: deque[Future[_Result]] = deque()
    ahead = 4 * pool._max_workers
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
