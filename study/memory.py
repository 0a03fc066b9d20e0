"""What a warm process keeps in its GPU's memory between trials: images, and the outputs of frozen prefixes.

Knows keys and tensors, nothing of what they mean. On a CPU it keeps nothing: there the store's mapped files do that.
"""

import gc
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

SHARE = 0.25
"""Of the memory that is free when a process first asks; the rest is for weights, activations and other processes. A
quarter, since trials that share a GPU may all ask while it is empty, and none knows how many they are."""


class DeviceMemory:
    """Tensors by key, as many as fit; the least recently used go first."""

    def __init__(self, limit_bytes: int) -> None:
        """Begin empty.

        Args:
            limit_bytes: bound on all tensors together; 0 to keep nothing.
        """
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[Hashable, list[Tensor]] = OrderedDict()

    @property
    def used_bytes(self) -> int:
        """What all tensors take together."""
        return sum(map(_size, self._kept.values()))

    def get(self, key: Hashable) -> list[Tensor] | None:
        """Return what was kept under that key, now the most recently used; None where nothing is."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Hashable, tensors: list[Tensor]) -> None:
        """Keep tensors, and let others go for them; what is larger than the bound is not kept."""
        size = _size(tensors)
        if size > self.limit_bytes:
            return
        self._kept.pop(key, None)
        self._make_room(size)
        self._kept[key] = tensors

    def watch(self, key: Hashable, tensors: Iterable[Tensor], *, rows: int) -> Iterator[Tensor]:
        """Yield `tensors`, and keep them if they were taken to their end; what is held meanwhile counts as kept.

        Args:
            key: to keep them under.
            tensors: whose rows are all of one size.
            rows: of all tensors together, so that nothing has to go for what will not fit.
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
    """Return the process's memory of that device."""
    return DeviceMemory(int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0)


def release_memory() -> None:
    """Let go what the process keeps on any device, and give the devices back what it has freed."""
    gc.collect()
    device_memory.cache_clear()
    torch.cuda.empty_cache()  # does nothing where CUDA was not used


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
