"""Keep images and the outputs of frozen prefixes in GPU memory between the trials of one process.

This module knows keys and tensors, but not their meaning. It keeps nothing on a CPU, where the feature store's
memory-mapped files serve the same purpose.
"""

import gc
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

SHARE = 0.25
"""Fraction of the GPU memory that is free at a process's first request. The rest is for weights, activations and other
processes. It is only a quarter because trials that share a GPU may all start while the GPU is empty, and no trial knows
the number of the others."""


class DeviceMemory:
    """A cache of tensors by key with a size limit. The least recently used tensors are removed first."""

    def __init__(self, limit_bytes: int) -> None:
        """Create an empty cache.

        Args:
            limit_bytes: bound on the size of all tensors together; 0 to keep nothing.
        """
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, list[Tensor]] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(map(_size, self._kept.values()))

    def get(self, key: Hashable) -> list[Tensor] | None:
        """Return the tensors of `key` and mark them as most recently used; None if there are none."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Hashable, tensors: list[Tensor]) -> None:
        """Keep tensors, and remove others to make room. Tensors larger than the limit are not kept."""
        size = _size(tensors)
        if size > self.limit_bytes:
            return
        self._kept.pop(key, None)
        self._make_room(size)
        self._kept[key] = tensors

    def watch(self, key: Hashable, tensors: Iterable[Tensor], *, rows: int) -> Iterator[Tensor]:
        """Yield `tensors`, and keep them once all were taken. Room for them is made from the first one on.

        Args:
            key: key under which the tensors are kept.
            tensors: tensors whose rows all have the same size.
            rows: number of rows of all tensors together. If so many will not fit, nothing is removed for them.
        """
        held: list[Tensor] = []
        for tensor in tensors:
            if _size([tensor]) * rows <= self.limit_bytes * len(tensor):
                held.append(tensor)
                self._make_room(_size(held))
            yield tensor
        if held:
            self.keep(key, held)

    def _make_room(self, size: int) -> None:
        while self._kept and self.used_bytes + size > self.limit_bytes:
            self._kept.popitem(last=False)


@cache
def device_memory(device: torch.device) -> DeviceMemory:
    """Return this process's cache on `device`."""
    return DeviceMemory(int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0)


def release_memory() -> None:
    """Drop all tensors that this process keeps on any device, and return the freed memory to the devices."""
    gc.collect()
    device_memory.cache_clear()
    torch.cuda.empty_cache()  # does nothing if CUDA was not used


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
