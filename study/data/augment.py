"""Augment a whole epoch at once: torchvision's AutoAugment (CIFAR-10 policy), then horizontal flips.

Owns what is drawn for each image and the grouping that makes it fast. Policy, magnitudes and kernels are torchvision's
own: the result equals, bit for bit, torchvision applied to one image at a time. Knows no data set and no model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from study.seeding import derive_seed

_AUTO_AUGMENT = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)  # Cubuk et al., arXiv:1805.09501
_MAGNITUDE_BINS = 10  # as AutoAugment.forward has it
_CHUNK_VALUES = 3 * 256 * 256
"""Values that a kernel gets at once on a CPU: they stay in a core's cache, float copies included. A GPU gets a whole
group. On either it is one image where that has so many pixels (more than 256 by 256) that a float32 sum over them is no
longer exact and may depend on the batch."""

_Kernel = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Draws:
    """Random draws for the augmentation of n images in one epoch, in host memory; row i belongs to image i only."""

    policy: Tensor
    """Sub-policy of each image, (n,) int64, 0 to 24."""
    probability: Tensor
    """A number for each operation of the sub-policy, (n, 2) float32 in [0, 1); above its probability it is skipped."""
    sign: Tensor
    """Whether to negate each operation's magnitude, if it has a sign, (n, 2) bool."""
    flip: Tensor
    """Whether to flip each image horizontally at the end, (n,) bool."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.policy)

    def take(self, indices: Tensor | np.ndarray | Sequence[int]) -> "Draws":
        """Return the draws of the images at `indices`, in the order of `indices`."""
        rows = torch.as_tensor(indices, dtype=torch.long)
        return Draws(self.policy[rows], self.probability[rows], self.sign[rows], self.flip[rows])


def draw(n: int, *, seed: int, epoch: int) -> Draws:
    """Draw the augmentation of n images in one epoch, on the CPU; row i does not depend on n."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "augment", epoch))
    uniform = torch.rand(n, 6, generator=generator)  # filled row by row, so that no image's draws depend on n
    return Draws(
        policy=(uniform[:, 0] * len(_AUTO_AUGMENT._policies)).long(),
        probability=uniform[:, 1:3],
        sign=uniform[:, 3:5] < 0.5,
        flip=uniform[:, 5] < 0.5,
    )


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply the draws: both operations of each image's sub-policy, then the flip.

    Args:
        images: (n, 3, height, width) uint8, on any device; not modified.
        draws: draws of the same n images.

    Returns:
        A new tensor of the same shape, type and device. Image i depends on image i and its draws only.
    """
    kernels, codes, probabilities = _policy_table(*images.shape[-2:])
    applies = draws.probability <= probabilities[draws.policy]
    first, second = (codes[draws.policy[:, None], torch.arange(2), draws.sign.long()] * applies).unbind(1)
    flips: list[_Kernel] = [_identity, v2.functional.horizontal_flip]
    rows = torch.arange(len(images))
    target, spare = (
        torch.empty_like(images),
        torch.empty_like(images),
    )  # reused, since allocating memory costs more than copying
    for step_kernels, code in ((kernels, first), (kernels, second), (flips, draws.flip.long())):
        rows = _apply_in_groups(images, rows, code, step_kernels, out=target)
        images, target, spare = target, spare, target
    return torch.index_select(images, 0, rows.to(images.device, non_blocking=True), out=target)


def _policy_table(height: int, width: int) -> tuple[list[_Kernel], Tensor, Tensor]:
    """Return the distinct kernels, the first of which does nothing, and their places in the policy.

    Returns:
        kernels: one for each pair of an operation and a signed magnitude.
        codes: (25, 2, 2) int64, the kernel of each sub-policy, slot and sign.
        probabilities: (25, 2) float32, of each sub-policy and slot.
    """
    known = {("Identity", 0.0): 0}
    codes = []
    for policy in _AUTO_AUGMENT._policies:
        for operation, _, index in policy:
            magnitudes_of, signed = _AUTO_AUGMENT._AUGMENTATION_SPACE[operation]
            magnitudes = magnitudes_of(_MAGNITUDE_BINS, height, width)
            magnitude = 0.0 if magnitudes is None else float(magnitudes[index])
            for signed_magnitude in (magnitude, -magnitude if signed else magnitude):
                codes.append(known.setdefault((operation, signed_magnitude), len(known)))
    kernels: list[_Kernel] = [
        partial(
            _AUTO_AUGMENT._apply_image_or_video_transform,
            transform_id=operation,
            magnitude=magnitude,
            interpolation=_AUTO_AUGMENT.interpolation,
            fill=_AUTO_AUGMENT._fill,
        )
        for operation, magnitude in known
    ]
    probabilities = [[probability for _, probability, _ in policy] for policy in _AUTO_AUGMENT._policies]
    return kernels, torch.tensor(codes).view(-1, 2, 2), torch.tensor(probabilities)


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
