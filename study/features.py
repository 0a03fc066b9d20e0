"""The frozen prefix's outputs: what a trial trains on.

The prefix always runs over an epoch in the same chunks of CHUNK images and in the epoch's own order, whatever the
trial's batch size, so that its outputs are the same, bit for bit, for every trial that needs them: a trial may train
on what another has left in the store.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
import torchvision
from torch import Tensor, nn

from study.augment import Draws, augment, draw
from study.config import DEPTHS, Recipe
from study.data import Images
from study.memory import DeviceMemory, device_memory
from study.models import Classifier, digest_weights, preprocessing
from study.store import FeatureStore, Key

CHUNK = 64
"""Images a forward pass of the prefix."""
WINDOW = 2048
"""Images augmented at once: enough for large groups, a few hundred MB at most for stored images of 256 px."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which forward passes run at `precision`, 'bf16' or 'fp32'."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def epoch_outputs(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    order: Tensor,
    *,
    augmentation: tuple[int, int] | None,
    device: torch.device,
    precision: str,
    store: FeatureStore | None,
    memory: DeviceMemory | None = None,
) -> Iterator[Tensor]:
    """Yield the prefix's outputs for `images[order]` on `device`, CHUNK images at a time, from the store if possible.

    What the store lacks is computed from what it has of a shorter prefix, as trials of larger unfreeze depths have left
    it, and only else from the images.

    Args:
        classifier: on `device`; its prefix is frozen and in evaluation mode.
        recipe: the model, its image size and its augmentation.
        images: the whole set.
        order: (m,) int64, indices into `images`.
        augmentation: seed and epoch, where the images are to be augmented as the recipe says; None for validation.
        device: where the prefix runs.
        precision: bf16 (autocast) or fp32.
        store: None to compute everything here. An empty prefix is never stored.
        memory: what the process keeps on `device`, asked before the store; None for the device's own.
    """
    memory = memory or device_memory(device)
    policy = recipe.augmentation if augmentation else "none"
    seed, epoch = augmentation if augmentation and policy != "none" else (0, 0)
    from_images = partial(
        prefix_outputs,
        preprocess=preprocessing(recipe.model, recipe.image_size),
        images=_on_device(images, device, memory),
        draws=None if policy == "none" else draw(len(images), seed=seed, epoch=epoch),
        device=device,
        precision=precision,
    )
    if store is None or not len(classifier.prefix):
        return from_images(classifier.prefix, order=order)
    key = Key(
        model=recipe.model,
        weights=classifier.prefix_digest,
        unfreeze_depth=recipe.unfreeze_depth,
        image_size=recipe.image_size,
        images=images.fingerprint,
        order=hashlib.sha256(order.numpy().data).hexdigest()[:16],
        augmentation=policy,
        seed=seed,
        epoch=epoch,
        precision=precision,
        machine=describe_arithmetic(device),
    )
    if kept := memory.get(key):
        store.tally["read"] += len(order)
        return iter(kept)

    def compute(rest: Tensor) -> Iterator[Tensor]:
        """Yield the outputs for the last images of `order`."""
        for depth in range(recipe.unfreeze_depth + 1, len(DEPTHS) - 1):
            shorter = classifier.shorter_prefix(depth)
            known = replace(key, unfreeze_depth=depth, weights=digest_weights(shorter))
            if store.holds(known, order):
                held = store.stream(known, order, partial(from_images, shorter), rest, counted=False)
                return run_blocks(classifier.prefix[len(shorter) :], held, device=device, precision=precision)
        return from_images(classifier.prefix, order=rest)

    chunks = (chunk.to(device, non_blocking=True) for chunk in store.stream(key, order, compute))
    return memory.watch(key, chunks, rows=len(order))


def _on_device(images: Images, device: torch.device, memory: DeviceMemory) -> Tensor:
    """Return the pixels (n, 3, height, width) uint8: on the device if it has room for them, else in host memory."""
    pixels = torch.from_numpy(images.pixels)
    if device.type == "cpu" or pixels.nbytes > memory.limit_bytes:
        return pixels
    kept = memory.get(images.fingerprint)
    if kept is None:
        kept = [pixels.to(device)]
        memory.keep(images.fingerprint, kept)
    return kept[0]


def describe_arithmetic(device: torch.device) -> str:
    """Name what may change the last bit of a result: the hardware and the software that computes on it."""
    software = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, cuDNN {torch.backends.cudnn.version()}, {software}"
    found: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch has none
    kind = [torch.backends.cpu.get_cpu_capability(), *(found.get(fact) for fact in ("cpu_name", "l2_cache_size"))]
    return f"{kind}, {torch.get_num_threads()} threads, {software}"


def prefix_outputs(
    prefix: nn.Sequential,
    order: Tensor,
    *,
    preprocess: Callable[[Tensor], Tensor],
    images: Tensor,
    draws: Draws | None,
    device: torch.device,
    precision: str,
) -> Iterator[Tensor]:
    """Yield a prefix's outputs for `images[order]`, CHUNK images at a time, in bf16 or fp32 as `precision` says.

    Args:
        prefix: on `device`, frozen and in evaluation mode.
        order: (m,) int64, indices into `images`.
        preprocess: the weights' own transforms, uint8 (n, 3, height, width) to normalised float.
        images: (n, 3, height, width) uint8, in host or device memory.
        draws: the epoch's augmentation of all n images, or None to leave them as they are.
        device: where the prefix runs.
        precision: bf16 (autocast) or fp32.
    """

    def prepared() -> Iterator[Tensor]:
        for window in order.split(WINDOW):
            selected = images[window.to(images.device)].to(device, non_blocking=True)
            if draws is not None:
                selected = augment(selected, draws.take(window))
            for chunk in selected.split(CHUNK):
                # Channels last before the resize: there it is 3 × 32 × 32 bytes, after it 3 × 224 × 224 floats.
                yield preprocess(chunk.contiguous(memory_format=torch.channels_last))

    return run_blocks(prefix, prepared(), device=device, precision=precision)


def run_blocks(
    blocks: nn.Sequential, chunks: Iterable[Tensor], *, device: torch.device, precision: str
) -> Iterator[Tensor]:
    """Yield what frozen blocks make of each chunk, in bf16 or fp32 as `precision` says.

    Between two blocks, too, values are rounded to that: so it makes no difference, bit for bit, from which block's
    stored outputs one goes on.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for chunk in chunks:
        with torch.inference_mode(), autocast(device, precision):
            outputs = chunk.to(device, non_blocking=True)
            for block in blocks:
                outputs = block(outputs).to(dtype)
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
    next(stream, None)  # whoever watches the stream keeps only what was taken to its end
