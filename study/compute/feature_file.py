"""Read and write one segment of stored prefix outputs: a safetensors file with a checksum."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FORMAT = 2
"""Version of the files and of the code that computes their contents. Raise it with any change to either."""

HEADER_BYTES = 4096
"""Size of a file's header: one page, so that the values after it are aligned like the memory of a torch tensor."""

_DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


@dataclass(frozen=True)
class Key:
    """Everything on which the prefix's outputs for one epoch of one set of images depend."""

    model: str
    weights: str
    """Digest of the prefix's tensors."""
    unfreeze_depth: int
    image_size: int
    images: str
    """Fingerprint of the set of images."""
    order: str
    """Digest of the order of the images in the epoch, and of how they are mixed, if they are."""
    augmentation: str
    """Name of the augmentation, and the parameters of mixing."""
    seed: int
    """Seed of the augmentation. Without augmentation, seed and epoch are 0, so that one entry serves all epochs."""
    epoch: int
    precision: str
    machine: str
    """Hardware and software that computed the outputs."""
    format: int = FORMAT
    fit: str = "crop"
    """What happens to images that are not square."""

    @property
    def digest(self) -> str:
        """Return the 64 hexadecimal digits with which the names of the key's files begin."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()

    @property
    def kind(self) -> "Key":
        """Return the part that the keys of all epochs of a trial share. Timings of one epoch apply to all of them."""
        return dataclasses.replace(self, order="", seed=0, epoch=0)


class Span(NamedTuple):
    """A segment of an epoch: the images [start, stop), whose outputs are in one file."""

    path: Path
    start: int
    stop: int

    @property
    def lock(self) -> Path:
        """Lock file, which exists and is locked while a process computes the segment."""
        return self.path.with_suffix(".lock")


class Loaded(NamedTuple):
    """A segment that was read from its file."""

    chunks: Sequence[Tensor]
    compute_s: float
    """Seconds that computing the segment had taken."""


class Unreadable(Exception):
    """A file cannot be read for the moment, although it may be intact."""


def read_segment(key: Key, span: Span) -> Loaded | None:
    """Map a segment's file and verify its checksum; return None if it is missing, or damaged and thus removed.

    Raises:
        Unreadable: memory or file handles have run out, or the disk fails. The file itself may be intact.
    """
    if not os.path.lexists(span.path):
        return None
    try:
        if not span.path.is_file():
            raise ValueError("neither a file nor a link to one")
        # This raises the true OSError, where safetensors would report a missing file. It also waits for the disk
        # without blocking other threads, as safetensors would.
        with open(span.path, "rb") as opened:
            opened.read(HEADER_BYTES)
        with safe_open(span.path, framework="pt") as file:
            metadata = json.loads(file.metadata()["study"])
            values = file.get_tensor("features")
        if metadata["key"] != dataclasses.asdict(key) or len(values) != span.stop - span.start:
            raise ValueError("another key")
        if metadata["checksum"] != _checksum(values) % 2**64:
            raise ValueError("other values than were written")
        chunks = values.permute(_inverse(metadata["layout"])).split(metadata["chunk"])
        loaded = Loaded(chunks, metadata["compute_s"])
    except FileNotFoundError:  # evicted just now
        return None
    except (OSError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError if it cannot map a file
        raise Unreadable from error
    except Exception:  # for a damaged file, the readers raise almost any other exception
        span.path.unlink(missing_ok=True)
        return None
    with suppress(OSError):  # the file may be gone, or belong to another user
        os.utime(span.path)
    return loaded


def write_segment(draft: Path, key: Key, chunks: Iterable[Tensor], compute_s: Callable[[], float]) -> None:
    """Write a segment into the file `draft`, which exists. Without its header, written last, the file is no entry.

    Args:
        draft: file that the caller renames when it is complete.
        key: key of the outputs.
        chunks: outputs (n, ...) bf16 or fp32 in host memory, in chunks of equal size except for the last chunk.
        compute_s: function that returns the seconds that computing the segment took; called after the last chunk.

    Raises:
        OSError: the draft is missing, or the disk is full or fails.
    """
    layout: list[int] = []
    images = chunk_images = checksum = 0
    with open(draft, "r+b") as file:
        file.seek(HEADER_BYTES)
        for chunk in chunks:
            layout, chunk_images = layout or _memory_layout(chunk), chunk_images or len(chunk)
            values = chunk.permute(layout).contiguous()
            checksum += _checksum(values)
            images += len(chunk)
            file.write(values.view(torch.uint8).numpy().data)
        metadata = {
            "key": dataclasses.asdict(key),
            "chunk": chunk_images,
            "layout": layout,
            "checksum": checksum % 2**64,
            "compute_s": compute_s(),
        }
        file.seek(0)
        file.write(_header((images, *values.shape[1:]), values.dtype, metadata))


def _memory_layout(outputs: Tensor) -> list[int]:
    """Return the dimensions in memory order, the images' dimension first; channels-last is 0, 2, 3, 1."""
    return [0, *sorted(range(1, outputs.dim()), key=outputs.stride().__getitem__, reverse=True)]


def _inverse(layout: Sequence[int]) -> list[int]:
    return [layout.index(dimension) for dimension in range(len(layout))]


def _checksum(values: Tensor) -> int:
    """Sum the bytes eight at a time, at memory speed. A lost page or a flipped bit changes the sum.

    NumPy sums in the calling thread. torch would start a second thread pool for the thread that reads ahead.
    """
    data = values.flatten().view(torch.uint8).numpy()
    whole = len(data) // 8 * 8
    return int(data[:whole].view(np.int64).sum()) + int(data[whole:].sum(dtype=np.int64))


def _header(shape: tuple[int, ...], dtype: torch.dtype, metadata: dict[str, Any]) -> bytes:
    """Return the header of a safetensors file, padded with spaces to HEADER_BYTES."""
    tensor = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [0, math.prod(shape) * dtype.itemsize]}
    text = json.dumps({"__metadata__": {"study": json.dumps(metadata)}, "features": tensor}).encode()
    length = HEADER_BYTES - 8
    assert len(text) <= length
    return length.to_bytes(8, "little") + text.ljust(length)
