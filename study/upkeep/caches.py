"""Show what the caches of this user take on disk, and clear those that studies fill."""

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from study.config.paths import cache_directory, hugging_face_directory, torch_hub_directory
from study.data.pixel_store import PixelStore
from study.errors import RecordError
from study.formatting import format_bytes, format_table
from study.upkeep.inventory import size_of

OURS = {
    "features": "outputs of frozen blocks, which trials share",
    "images": "decoded images of large folders",
}
"""Caches that can be cleared, as directories in the user's cache: all they hold is computed again when needed."""


@dataclass(frozen=True)
class Cache:
    """A directory of files that can be computed or downloaded again."""

    name: str
    what: str
    directory: Path
    clearable: bool

    @property
    def size_bytes(self) -> int:
        """Size of its files."""
        return size_of(self.directory)


def list_caches() -> list[Cache]:
    """Return all caches that studies use; what is downloaded is shown, but not cleared."""
    root = cache_directory()
    return [
        *(Cache(name, what, root / name, True) for name, what in OURS.items()),
        Cache("data", "downloaded data sets", root / "data", False),
        Cache("torch", "downloaded weights, also of other programs", torch_hub_directory(), False),
        Cache("huggingface", "downloaded weights, also of other programs", hugging_face_directory(), False),
    ]


def clear(cache: Cache) -> int:
    """Remove what a cache holds and no process uses, and return the bytes.

    Raises:
        RecordError: files cannot be removed.
    """
    assert cache.clearable
    if not cache.directory.is_dir():
        return 0
    before = cache.size_bytes
    try:
        if cache.name == "images":
            PixelStore(cache.directory).clear()  # it leaves what a running study reads
        else:
            with FileLock(cache.directory / "room.lock"):  # no process makes room, or begins a file, meanwhile
                for file in cache.directory.glob("*.safetensors"):  # who has opened one goes on reading it
                    file.unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(f"{cache.directory}: must be removable, but got: {error.strerror}.") from None
    return before - cache.size_bytes


def format_caches(caches: list[Cache]) -> str:
    """Return the table of caches."""
    rows = [("cache", "size", "what it holds", "directory")]
    rows += [(cache.name, format_bytes(cache.size_bytes), cache.what, str(cache.directory)) for cache in caches]
    return format_table(rows)
