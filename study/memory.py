"""What a warm process keeps in its GPU's memory between trials: images, and the outputs of frozen prefixes.

Knows keys and tensors, nothing of what they mean. On a CPU it keeps nothing: there the store's mapped files do that.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

SHARE = 0.5
"""Of the memory that is free when a process first asks; the rest is for weights, activations and other processes."""


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
        while self.used_bytes + size > self.limit_bytes:
            self._kept.popitem(last=False)
        self._kept[key] = tensors

    def watch(self, key: Hashable, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield `tensors`, and keep them if they were taken to the last one; no more than fits is held meanwhile."""
        held: list[Tensor] | None = []
        size = 0
        for tensor in tensors:
            size += _size([tensor])
            if held is not None and size <= self.limit_bytes:
                held.append(tensor)
            else:
                held = None
            yield tensor
        if held:
            self.keep(key, held)


@cache
def device_memory(device: torch.device) -> DeviceMemory:
    """Return the process's memory of that device."""
    return DeviceMemory(int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
