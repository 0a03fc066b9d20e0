"""Augment a whole epoch at once: AutoAugment, TrivialAugment, RandAugment or random crops, then horizontal flips.

Owns what is drawn for each image and the grouping that makes it fast. Policies, magnitudes and kernels are
torchvision's own: the result equals, bit for bit, torchvision applied to one image at a time. Knows no data set and no
model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from study.seeding import derive_seed

_AUTO_AUGMENT = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)  # Cubuk et al., arXiv:1805.09501
_MAGNITUDE_BINS = 10  # as AutoAugment.forward has it
_TRIVIAL_AUGMENT = v2.TrivialAugmentWide()  # Müller & Hutter, arXiv:2103.10158: one of 14 operations, 31 magnitudes
_RAND_AUGMENT = v2.RandAugment()  # Cubuk et al., arXiv:1909.13719, with torchvision's 2 operations of magnitude 9 of 31
_CROP_SCALE, _CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the area and ratio of the sides of a random crop: Szegedy et al., arXiv:1409.4842, as in torchvision."""
_CROP_ATTEMPTS = 10  # as RandomResizedCrop.make_params has it
_SLOTS = {"autoaugment": 2, "trivialaugment": 1, "randaugment": 2, "flip": 0, "random-resized-crop": 0}
"""Operations for each image, by the name of the augmentation."""
_CHUNK_VALUES = 3 * 256 * 256
"""Values that a kernel gets at once on a CPU: they stay in a core's cache, float copies included. A GPU gets a whole
group. On either it is one image where that has so many pixels (more than 256 by 256) that a float32 sum over them is no
longer exact and may depend on the batch."""

_Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Draws:
    """Random draws for the augmentation of n images in one epoch, in host memory; row i belongs to image i only."""

    policy: Tensor
    """Row of the policy's table for each operation of each image, (n, operations) int64."""
    probability: Tensor
    """A number for each operation, (n, operations) float32 in [0, 1); above its probability it is skipped."""
    sign: Tensor
    """Whether to negate each operation's magnitude, if it has a sign, (n, operations) bool."""
    flip: Tensor
    """Whether to flip each image horizontally at the end, (n,) bool."""
    kind: str = "autoaugment"
    """Name of the augmentation."""
    crop: Tensor | None = None
    """Numbers in [0, 1) that choose each image's crop, (n, 22) float64: areas and ratios to try, top and left."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.flip)

    def take(self, indices: Tensor | np.ndarray | Sequence[int]) -> "Draws":
        """Return the draws of the images at `indices`, in the order of `indices`."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        crop = None if self.crop is None else self.crop[rows]
        return replace(
            self,
            policy=self.policy[rows],
            probability=self.probability[rows],
            sign=self.sign[rows],
            flip=self.flip[rows],
            crop=crop,
        )


def draw(n: int, *, seed: int, epoch: int, kind: str = "autoaugment") -> Draws:
    """Draw the augmentation `kind` of n images in one epoch, on the CPU; row i does not depend on n."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    slots = _SLOTS[kind]
    crops = 2 * _CROP_ATTEMPTS + 2 if kind == "random-resized-crop" else 0
    chosen = 1 if kind == "autoaugment" else slots  # AutoAugment's sub-policy decides both operations
    numbers = chosen + 2 * slots + crops + 1
    uniform = torch.rand(n, numbers, generator=generator)  # filled row by row, so that no image's draws depend on n
    policy, probability, sign, crop, flip = uniform.split([chosen, slots, slots, crops, 1], dim=1)
    return Draws(
        policy=(policy * _rows_of(kind)).long().expand(n, slots),
        probability=probability,
        sign=sign < 0.5,
        flip=flip[:, 0] < 0.5,
        kind=kind,
        crop=crop.double() if crops else None,
    )


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply the draws: the operations of each image, or its crop, then the flip.

    Args:
        images: (n, 3, height, width) uint8, on any device; not modified.
        draws: draws of the same n images.

    Returns:
        A new tensor of the same shape, type and device. Image i depends on image i and its draws only.
    """
    if draws.crop is not None:
        images = _crop(images, draws.crop)
    steps: list[tuple[Sequence[_Kernel], Tensor]] = []
    slots = draws.policy.shape[1]
    if slots:
        kernels, codes, probabilities = _policy_table(draws.kind, *images.shape[-2:])
        at = torch.arange(slots)
        applies = draws.probability <= probabilities[draws.policy, at]
        steps += [(kernels, code) for code in (codes[draws.policy, at, draws.sign.long()] * applies).unbind(1)]
    steps.append(([_identity, v2.functional.horizontal_flip], draws.flip.long()))
    rows = torch.arange(len(images))
    target, spare = (
        torch.empty_like(images),
        torch.empty_like(images),
    )  # reused, since allocating memory costs more than copying
    for step_kernels, code in steps:
        rows = _apply_in_groups(images, rows, code, step_kernels, out=target)
        images, target, spare = target, spare, target
    return torch.index_select(images, 0, rows.to(images.device, non_blocking=True), out=target)


def fit_after(kind: str, fit: str) -> str:
    """Return how augmented images become squares: after a random crop the whole crop is kept, whatever the fit."""
    return "squash" if kind == "random-resized-crop" else fit


def _operations(kind: str, height: int, width: int) -> list[list[tuple[str, float, bool, float]]]:
    """Return the rows of a policy's table: for each slot an operation, magnitude, whether it has a sign, probability.

    AutoAugment has a row for each sub-policy, TrivialAugment one for each operation and magnitude, RandAugment one for
    each operation.
    """
    if kind == "autoaugment":
        space, bins = _AUTO_AUGMENT._AUGMENTATION_SPACE, _MAGNITUDE_BINS
        chosen = [[*policy] for policy in _AUTO_AUGMENT._policies]
    elif kind == "trivialaugment":
        space, bins = _TRIVIAL_AUGMENT._AUGMENTATION_SPACE, _TRIVIAL_AUGMENT.num_magnitude_bins
        chosen = [[(operation, 1.0, index)] for operation in space for index in range(bins)]
    else:
        space, bins = _RAND_AUGMENT._AUGMENTATION_SPACE, _RAND_AUGMENT.num_magnitude_bins
        chosen = [[(operation, 1.0, _RAND_AUGMENT.magnitude)] * _RAND_AUGMENT.num_ops for operation in space]
    magnitudes = {name: magnitudes_of(bins, height, width) for name, (magnitudes_of, _) in space.items()}
    return [
        [
            (name, 0.0 if magnitudes[name] is None else float(magnitudes[name][index]), space[name][1], probability)
            for name, probability, index in slots
        ]
        for slots in chosen
    ]


@lru_cache(maxsize=8)
def _policy_table(kind: str, height: int, width: int) -> tuple[list[_Kernel], Tensor, Tensor]:
    """Return the distinct kernels, the first of which does nothing, and their places in the policy.

    Returns:
        kernels: one for each pair of an operation and a signed magnitude.
        codes: (rows, slots, 2) int64, the kernel of each row, slot and sign.
        probabilities: (rows, slots) float32, of each row and slot.
    """
    known = {("Identity", 0.0): 0}
    rows = _operations(kind, height, width)
    codes = []
    for operation, magnitude, signed, _ in (slot for slots in rows for slot in slots):
        for signed_magnitude in (magnitude, -magnitude if signed else magnitude):
            codes.append(known.setdefault((operation, signed_magnitude), len(known)))
    kernels: list[_Kernel] = [
        partial(
            _AUTO_AUGMENT._apply_image_or_video_transform,  # the same for all of torchvision's policies
            transform_id=operation,
            magnitude=magnitude,
            interpolation=_AUTO_AUGMENT.interpolation,
            fill=_AUTO_AUGMENT._fill,
        )
        for operation, magnitude in known
    ]
    probabilities = [[probability for *_, probability in slots] for slots in rows]
    return kernels, torch.tensor(codes).view(len(rows), -1, 2), torch.tensor(probabilities)


@lru_cache
def _rows_of(kind: str) -> int:
    """Return the number of rows of a policy's table; 0 without a policy."""
    return len(_operations(kind, 1, 1)) if _SLOTS[kind] else 0


def _crop(images: Tensor, numbers: Tensor) -> Tensor:
    """Return each image's crop, resized to the whole image's size."""
    size = [*images.shape[-2:]]
    cropped = torch.empty_like(images)
    for at, (top, left, height, width) in enumerate(crop_boxes(numbers, *size).tolist()):
        cropped[at : at + 1] = v2.functional.resized_crop(images[at : at + 1], top, left, height, width, size)
    return cropped


def crop_boxes(numbers: Tensor, height: int, width: int) -> Tensor:
    """Return the boxes of random crops as torchvision's `RandomResizedCrop.make_params` computes them.

    Args:
        numbers: numbers in [0, 1), (n, 22) float64: areas and ratios to try, then the place.
        height: height of the images in pixels.
        width: width of the images in pixels.

    Returns:
        Top, left, height and width of each crop in pixels, (n, 4) int64.
    """
    areas, ratios, place = numbers.split([_CROP_ATTEMPTS, _CROP_ATTEMPTS, 2], dim=1)
    low, high = _CROP_SCALE
    areas = height * width * (low + (high - low) * areas)
    lowest, highest = map(math.log, _CROP_RATIO)
    ratios = torch.exp(lowest + (highest - lowest) * ratios)
    widths, heights = torch.sqrt(areas * ratios).round().long(), torch.sqrt(areas / ratios).round().long()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.long().argmax(dim=1, keepdim=True)
    # Where no attempt fits: the largest box in the middle whose ratio is allowed.
    whole_width, whole_height = min(width, round(height * _CROP_RATIO[1])), min(height, round(width / _CROP_RATIO[0]))
    found = fits.any(dim=1)
    box_width = torch.where(found, widths.gather(1, first)[:, 0], whole_width)
    box_height = torch.where(found, heights.gather(1, first)[:, 0], whole_height)
    top = torch.where(found, (place[:, 0] * (height - box_height + 1)).long(), (height - box_height) // 2)
    left = torch.where(found, (place[:, 1] * (width - box_width + 1)).long(), (width - box_width) // 2)
    return torch.stack([top, left, box_height, box_width], dim=1)


def _identity(images: Tensor) -> Tensor:
    return images


def _apply_in_groups(images: Tensor, rows: Tensor, code: Tensor, kernels: Sequence[_Kernel], out: Tensor) -> Tensor:
    """Apply `kernels[code[i]]` to image i, which is `images[rows[i]]`, calling each kernel for many images at once.

    Images are moved by `index_select`, ten times as fast on bytes as indexing, and stay in the order of their groups.
    Rows and codes stay in host memory, so that the sizes of the groups are known without waiting for the device.

    Returns:
        The row of each image in `out`.
    """
    order = code.argsort()
    counts = code.bincount(minlength=len(kernels)).tolist()
    values = images.shape[1:].numel()
    chunk = len(images) if images.is_cuda and values <= _CHUNK_VALUES else max(1, _CHUNK_VALUES // values)
    sources_by_group = rows[order].to(images.device, non_blocking=True).split(counts)
    groups = zip(kernels, sources_by_group, torch.split(out, counts), strict=True)
    for kernel, sources, targets in groups:
        if len(sources):
            for source, target in zip(torch.split(sources, chunk), torch.split(targets, chunk), strict=True):
                target.copy_(kernel(images.index_select(0, source)))
    return order.argsort()
