"""Keep images, the outputs of frozen prefixes and small constants in GPU memory between the trials of one process.

This module knows keys and tensors, but not their meaning. It keeps nothing on a CPU, where the feature store's
memory-mapped files serve the same purpose.
"""

import gc
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

SHARE = 0.5
"""Fraction of a trial's part of the GPU memory, as far as it is free at the process's first request. The rest is for
weights, activations, and what CUDA itself needs."""


class DeviceMemory:
    """A cache of tensors by key with a size limit, which keeps what is asked for most often.

    Tensors whose key was never asked for before replace the least recently used ones. All others replace only tensors
    that were last asked for before these were: where the epochs of a trial do not fit together, each trial finds those
    that fit, and does not remove them for the rest. This is the rule of LIRS (Jiang & Zhang, SIGMETRICS 2002).
    """

    def __init__(self, limit_bytes: int) -> None:
        """Create an empty cache.

        Args:
            limit_bytes: bound on the size of all tensors together; 0 to keep nothing.
        """
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        """Size of all tensors together."""
        self._kept: OrderedDict[Hashable, list[Tensor]] = OrderedDict()
        self._clock = itertools.count()
        self._asked: dict[Hashable, tuple[int, int | None]] = {}
        """When each key was asked for last, and when before that."""

    def get(self, key: Hashable) -> list[Tensor] | None:
        """Return the tensors of `key` and mark them as most recently used; None if there are none."""
        self._asked[key] = (next(self._clock), self._asked.get(key, (None,))[0])
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Hashable, tensors: list[Tensor]) -> None:
        """Keep tensors if there is room or others may be removed for them."""
        size = _size(tensors)
        self._remove(key)
        if self._make_room(key, size):
            self._kept[key] = tensors
            self.used_bytes += size

    def watch(self, key: Hashable, tensors: Iterable[Tensor], *, rows: int) -> Iterator[Tensor]:
        """Yield `tensors`, and keep them once all were taken. Room for them is made at the first one.

        Args:
            key: key under which the tensors are kept.
            tensors: tensors whose rows all have the same size.
            rows: number of rows of all tensors together. If so many will not fit, nothing is removed for them.
        """
        held: list[Tensor] = []
        fits: bool | None = None
        for tensor in tensors:
            if fits is None:
                fits = self._make_room(key, -(-_size([tensor]) * rows // len(tensor)))
            if fits:
                held.append(tensor)
            yield tensor
        if held:
            self.keep(key, held)

    def _make_room(self, key: Hashable, size: int) -> bool:
        """Remove tensors so that `size` bytes of `key` fit, and return True; or remove nothing, and return False."""
        _, asked_before = self._asked.get(key, (None, None))
        room = self.limit_bytes - self.used_bytes
        removable: list[Hashable] = []
        for other, kept in self._kept.items():
            last, _ = self._asked.get(other, (-1, None))
            if room >= size or (asked_before is not None and last >= asked_before):
                break
            removable.append(other)
            room += _size(kept)
        if room < size:
            return False
        for other in removable:
            self._remove(other)
        return True

    def _remove(self, key: Hashable) -> None:
        self.used_bytes -= _size(self._kept.pop(key, []))


@cache
def device_memory(device: torch.device, gpu_share: float = 1.0) -> DeviceMemory:
    """Return this process's cache on `device`, for a trial that has the part `gpu_share` of it."""
    if device.type != "cuda":
        return DeviceMemory(0)
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(int(SHARE * min(free, gpu_share * total)))


def release_memory() -> None:
    """Drop all tensors that this process keeps on any device, and return the freed memory to the devices."""
    gc.collect()
    device_memory.cache_clear()
    torch.cuda.empty_cache()  # does nothing if CUDA was not used


class ConstantsKept(TorchFunctionMode):
    """Context in which torch.tensor(numbers, device="cuda") copies from a constant that the GPU already has.

    Otherwise each call waits until the GPU has done all its work: torchvision's transforms make 42 such calls to
    augment 2,048 images, and two to normalise a chunk.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer calls of torch.tensor and torch.as_tensor for a list of numbers on a GPU; pass all others on."""
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and args and isinstance(args[0], list | tuple):
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "cuda":
                return _constant(_frozen(args[0]), kwargs.get("dtype"), torch.device(device)).clone()
        return func(*args, **kwargs)


def constants_kept(device: torch.device) -> AbstractContextManager[object]:
    """Return the context for transforms on `device`: ConstantsKept on a GPU, nothing on a CPU."""
    return ConstantsKept() if device.type == "cuda" else nullcontext()


@lru_cache(maxsize=1024)
def _constant(numbers: Hashable, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


def _frozen(numbers: Any) -> Hashable:
    return tuple(map(_frozen, numbers)) if isinstance(numbers, list | tuple) else numbers


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
