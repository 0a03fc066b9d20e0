"""Compute the outputs of the frozen prefix, on which a trial trains its suffix, or read them from the store.

The prefix processes an epoch in the epoch's own order and in chunks of CHUNK images, whatever the trial's batch size.
Its outputs are therefore bit-identical for every trial that needs them, and a trial can train on outputs that another
trial has stored. This module does not know how the suffix is trained.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor, nn

from study.augmentation.augment import Draws, augment, draw, fit_after
from study.augmentation.mixing import Mixing, mix
from study.compute.feature_file import Key
from study.compute.feature_store import FeatureStore
from study.compute.gpu_cache import DeviceMemory, constants_kept, device_memory
from study.compute.hardware import Hardware
from study.config.recipe import Recipe
from study.data.images import Images
from study.data.stored_pixels import StoredPixels, windows
from study.models.classifier import Classifier
from study.models.preprocessing import preprocessing

CHUNK = 64
"""Images per forward pass of the prefix."""

WINDOW, WINDOW_BYTES = 2048, 2**27
"""Most images that are gathered and augmented at once, and most bytes: enough for large groups that get the same
operation. An image of more than 256 px is augmented alone on a CPU, whatever the window."""

HostPixels = Tensor | StoredPixels
"""Images (n, 3, height, width) uint8: in host or device memory, or in a file."""


def epoch_outputs(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    order: Tensor,
    *,
    augmentation: tuple[int, int] | None,
    hardware: Hardware,
    store: FeatureStore | None,
    memory: DeviceMemory | None = None,
    mixing: Mixing | None = None,
) -> Iterator[Tensor]:
    """Yield the prefix's outputs for `images[order]` on the device, CHUNK images at a time, from the store if possible.

    Outputs that are not stored are computed from the stored outputs of a shorter prefix, which a trial of larger
    unfreeze depth has left, or else from the images.

    Args:
        classifier: classifier on the device, with its prefix frozen and in evaluation mode.
        recipe: recipe that gives the model, the image size and the augmentation.
        images: the whole set of images.
        order: indices into `images`, (m,) int64.
        augmentation: seed and epoch of the recipe's augmentation; None for images that are evaluated.
        hardware: device and precision of the prefix.
        store: feature store; None to compute everything here. Outputs of an empty prefix are never stored.
        memory: cache on the device, which is searched before the store; None for the process's own cache.
        mixing: how all images are mixed in groups of CHUNK in this order; None if they are not.
    """
    memory = memory or device_memory(hardware.device, hardware.gpu_share)
    policy = recipe.augmentation if augmentation else "none"
    seed, epoch = augmentation if augmentation and policy != "none" else (0, 0)
    from_images = partial(
        prefix_outputs,
        preprocess=preprocessing(recipe.model, recipe.image_size, fit_after(policy, recipe.fit)),
        images=_on_device(images, hardware.device, memory),
        draws=None if policy == "none" else draw(len(images), seed=seed, epoch=epoch, kind=policy),
        hardware=hardware,
        mixing=mixing,
    )
    if store is None or not len(classifier.prefix):
        return from_images(classifier.prefix, order=order)
    key = Key(
        model=recipe.model,
        weights=classifier.prefix_digest,
        unfreeze_depth=recipe.unfreeze_depth,
        image_size=recipe.image_size,
        images=images.fingerprint,
        order=hashlib.sha256(order.numpy().tobytes() + (mixing.digest if mixing else b"")).hexdigest()[:16],
        augmentation=policy if mixing is None else f"{policy}, mixup {recipe.mixup}, cutmix {recipe.cutmix}",
        seed=seed,
        epoch=epoch,
        precision=hardware.precision,
        machine=hardware.arithmetic,
        fit=recipe.fit,
    )
    if kept := memory.get(key):
        store.tally["read"] += len(order)
        return iter(kept)

    def compute(rest: Tensor) -> Iterator[Tensor]:
        """Yield the outputs for `rest`, the last images of `order`."""
        for depth in classifier.larger_depths:
            shorter = classifier.shorter_prefix(depth)
            shorter_key = replace(key, unfreeze_depth=depth, weights=classifier.shorter_digest(depth))
            if store.holds(shorter_key, order):
                stored = store.stream(shorter_key, order, partial(from_images, shorter), rest, counted=False)
                return run_blocks(classifier.prefix[len(shorter) :], stored, hardware)
        return from_images(classifier.prefix, order=rest)

    chunks = (chunk.to(hardware.device, non_blocking=True) for chunk in store.stream(key, order, compute))
    return memory.watch(key, chunks, rows=len(order))


def classify(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    on_logits: Callable[[Tensor], object],
    *,
    hardware: Hardware,
    store: FeatureStore | None,
    count: int | None = None,
) -> None:
    """Classify images without augmentation, in their order, CHUNK at a time; puts the classifier into evaluation mode.

    Args:
        classifier: classifier on the device.
        recipe: recipe that gives the model and the image size.
        images: images of any split.
        on_logits: called with the logits (m, classes) of each chunk, on the device.
        hardware: device and precision.
        store: feature store for the frozen blocks' outputs; None to compute them.
        count: number of images to classify, the first ones; None for all.
    """
    classifier.set_evaluation()
    order = torch.arange(len(images) if count is None else count)
    chunks = epoch_outputs(classifier, recipe, images, order, augmentation=None, hardware=hardware, store=store)
    with torch.inference_mode(), hardware.autocast():  # around all chunks, since autocast keeps its casts of weights
        for chunk in chunks:
            on_logits(classifier.suffix(chunk))


def _on_device(images: Images, device: torch.device, memory: DeviceMemory) -> HostPixels:
    """Return the pixels on the device if they fit in its cache, else in host memory or in their file."""
    if device.type == "cpu" or images.pixels.nbytes > memory.limit_bytes:
        return images.pixels if isinstance(images.pixels, StoredPixels) else torch.from_numpy(images.pixels)
    kept = memory.get(images.fingerprint)
    if kept is None:
        whole = torch.empty(images.pixels.shape, dtype=torch.uint8, device=device)
        for part in windows(len(images), images.pixels.nbytes // len(images)):
            whole[part] = torch.from_numpy(images.pixels[part]).to(device)
        kept = [whole]
        memory.keep(images.fingerprint, kept)
    return kept[0]


def prefix_outputs(
    prefix: nn.Sequential,
    order: Tensor,
    *,
    preprocess: Callable[[Tensor], Tensor],
    images: HostPixels,
    draws: Draws | None,
    hardware: Hardware,
    mixing: Mixing | None = None,
) -> Iterator[Tensor]:
    """Yield a prefix's outputs for `images[order]`, CHUNK images at a time, at the hardware's precision.

    Args:
        prefix: blocks on the device, frozen and in evaluation mode.
        order: indices into `images`, (m,) int64; with mixing, from the first image of a group on.
        preprocess: transforms that belong to the weights, from uint8 (n, 3, height, width) to normalised float.
        images: images (n, 3, height, width) uint8, in host or device memory, or in a file.
        draws: augmentation of all n images in this epoch; None for no augmentation.
        hardware: device and precision of the prefix.
        mixing: how all n images are mixed in groups of CHUNK; None if they are not.
    """
    constants = constants_kept(hardware.device)

    def inputs() -> Iterator[Tensor]:
        for window, gathered in gather(images, order):
            selected = gathered.to(hardware.device, non_blocking=True)
            if draws is not None:
                with constants:
                    selected = augment(selected, draws.take(window))
            for chunk, indices in zip(selected.split(CHUNK), window.split(CHUNK), strict=True):
                # Channels-last before the resize, when an image is 3 × 32 × 32 bytes and not yet 3 × 224 × 224 floats.
                chunk = chunk.contiguous(memory_format=torch.channels_last)
                with constants:
                    prepared = preprocess(chunk)
                # Outside the context, which a generator would leak to its caller.
                yield prepared if mixing is None else mix(prepared, mixing, indices)

    return run_blocks(prefix, inputs(), hardware)


def gather(images: HostPixels, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of `order`, each with its images (m, 3, height, width); from a file, a thread reads one part ahead.

    An epoch is never whole in memory: at most two parts of it are.
    """
    size = images.shape[1] * images.shape[2] * images.shape[3]
    window = min(WINDOW, max(CHUNK, WINDOW_BYTES // size // CHUNK * CHUNK))
    if isinstance(images, Tensor):
        for part in order.split(window):
            yield part, images[part.to(images.device, non_blocking=True)]
        return
    # Nothing is computed while the first part is read, so it is small.
    parts = (order[:CHUNK], *order[CHUNK:].split(window)) if len(order) > CHUNK else (order,)
    reader = ThreadPoolExecutor(1, "gather")
    try:
        ahead = reader.submit(images.__getitem__, parts[0].numpy())
        for part, following in zip_longest(parts, parts[1:]):
            gathered = ahead.result()
            if following is not None:
                ahead = reader.submit(images.__getitem__, following.numpy())
            yield part, torch.from_numpy(gathered)
    finally:
        reader.shutdown(wait=False, cancel_futures=True)


def run_blocks(blocks: nn.Sequential, chunks: Iterable[Tensor], hardware: Hardware) -> Iterator[Tensor]:
    """Yield the outputs of frozen blocks for each chunk, at the hardware's precision.

    The outputs of every block are rounded to that precision, so that the results are bit-identical whichever block's
    stored outputs the computation starts from.
    """
    blocks = _with_cast_weights(blocks, hardware)
    for chunk in chunks:
        with torch.inference_mode(), hardware.autocast():
            outputs = chunk.to(hardware.device, non_blocking=True)
            for block in blocks:
                outputs = block(outputs).to(hardware.dtype)
        yield outputs  # outside the contexts, which a generator would leak to its caller


def _with_cast_weights(blocks: nn.Sequential, hardware: Hardware) -> nn.Sequential:
    """Return frozen blocks whose convolutions and linear layers have weights of the hardware's precision.

    Autocast would cast the same weights again for every chunk, since it keeps casts of trained weights only. All other
    tensors are shared with `blocks`. A subclass of these layers may compute with its weights before it uses them, so it
    is left alone.
    """
    if hardware.precision == "fp32":
        return blocks
    shared = {id(tensor): tensor for tensor in (*blocks.parameters(), *blocks.buffers())}
    copied = copy.deepcopy(blocks, shared)
    for module in copied.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.detach().to(hardware.dtype), requires_grad=False))
    return copied


def rebatch(chunks: Iterable[Tensor], sizes: Iterable[int]) -> Iterator[Tensor]:
    """Yield a stream of chunks as batches of the given sizes. Each batch is a copy, which autograd may save."""
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
    next(stream, None)  # ends the stream: DeviceMemory.watch keeps only streams that were taken to their end
