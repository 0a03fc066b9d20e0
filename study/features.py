"""The frozen prefix's outputs: what a trial trains on.

The prefix always runs over an epoch in the same chunks of CHUNK images and in the epoch's own order, whatever the
trial's batch size, so that its outputs are the same, bit for bit, for every trial that needs them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from study.augment import Draws, augment
from study.models import Classifier

CHUNK = 64
"""Images a forward pass of the prefix."""
WINDOW = 2048
"""Images augmented at once: enough for large groups, a few hundred MB at most for stored images of 256 px."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which forward passes run at `precision`, 'bf16' or 'fp32'."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def prefix_outputs(
    classifier: Classifier,
    preprocess: Callable[[Tensor], Tensor],
    images: Tensor,
    order: Tensor,
    *,
    draws: Draws | None,
    device: torch.device,
    precision: str,
) -> Iterator[Tensor]:
    """Yield the prefix's outputs for `images[order]`, CHUNK images at a time, in bf16 or fp32 as `precision` says.

    Args:
        classifier: on `device`; its prefix is frozen and in evaluation mode.
        preprocess: the weights' own transforms, uint8 (n, 3, height, width) to normalised float.
        images: (n, 3, height, width) uint8, in host or device memory.
        order: (m,) int64, indices into `images`.
        draws: the epoch's augmentation of all n images, or None to leave them as they are.
        device: where the prefix runs.
        precision: bf16 (autocast) or fp32.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for window in order.split(WINDOW):
        selected = images[window.to(images.device)].to(device, non_blocking=True)
        if draws is not None:
            selected = augment(selected, draws.take(window).to(device))
        for chunk in selected.split(CHUNK):
            with torch.inference_mode(), autocast(device, precision):
                # Channels last before the resize: there it is 3 × 32 × 32 bytes, after it 3 × 224 × 224 floats.
                inputs = preprocess(chunk.contiguous(memory_format=torch.channels_last))
                outputs = classifier.prefix(inputs).to(dtype)
            yield outputs  # outside the contexts: a generator would leak them to its consumer


def rebatch(chunks: Iterable[Tensor], sizes: Iterable[int]) -> Iterator[Tensor]:
    """Cut a stream of chunks into batches of the given sizes; each batch is a copy that autograd may save."""
    stream = iter(chunks)
    held: list[Tensor] = []
    count = 0
    for size in sizes:
        while count < size:
            chunk = next(stream)
            held.append(chunk)
            count += len(chunk)
        surplus = count - size
        last = held.pop()
        kept = len(last) - surplus
        yield torch.cat([*held, last[:kept]])
        held, count = [last[kept:]], surplus
