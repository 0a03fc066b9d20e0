"""Mix training images in pairs, by mixup or CutMix, and compare predictions with the mixed labels.

An image's partner, shares and box are functions of seed and epoch, so trials that mix alike see the same images. Knows
no network.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from study.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class Mixing:
    """How n images are mixed in one epoch, in host memory; row i belongs to image i."""

    partner: Tensor
    """Index of the image that each is mixed with, (n,) int64."""
    row: Tensor
    """Row of that image in the group of images that are mixed together, (n,) int64."""
    share: Tensor
    """Share of each image itself in the mixture and in its label, (n,) float32 in [0, 1]."""
    box: Tensor
    """Top, left, bottom and right of the part that CutMix takes from the partner, (n, 4) int64; zeros for mixup."""
    is_cut: Tensor
    """Whether each image is mixed by CutMix, (n,) bool."""

    @property
    def digest(self) -> bytes:
        """Return a digest of everything that the mixed images depend on, besides the images."""
        parts = (self.partner, self.row, self.share, self.box, self.is_cut)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).digest()


def draw_mixing(
    order: Tensor, *, mixup: float, cutmix: float, side: int, group: int, seed: int, epoch: int
) -> Mixing | None:
    """Draw how the images of an epoch are mixed; None if they are not.

    With both kinds, each image gets one of them by a fair coin.

    Args:
        order: order of all n images in the epoch, (n,) int64.
        mixup: both parameters of the beta distribution of mixup's shares, arXiv:1710.09412; 0 for no mixup.
        cutmix: the same for CutMix, arXiv:1905.04899; 0 for no CutMix.
        side: side of the mixed images in pixels.
        group: number of consecutive images, from the first one on, among which partners are drawn.
        seed: seed of the trial.
        epoch: number of the epoch.
    """
    if mixup == cutmix == 0:
        return None
    random = np.random.default_rng(derive_seed(seed, "mix", epoch))
    n = len(order)
    row = np.concatenate([random.permutation(min(group, n - start)) for start in range(0, n, group)])
    place = np.arange(n) // group * group + row
    is_cut = random.random(n) < (0.5 if mixup and cutmix else float(cutmix > 0))
    alphas = np.where(is_cut, cutmix, mixup)
    share = random.beta(alphas, alphas)
    half = (side * np.sqrt(1 - share)).astype(np.int64)[:, None] // 2
    centre = random.integers(side, size=(n, 2))
    box = np.concatenate([centre - half, centre + half], axis=1).clip(0, side) * is_cut[:, None]
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = np.where(is_cut, 1 - area / side**2, share).astype(np.float32)
    places = order.argsort()  # from places in the order to rows by image
    by_place = [order[torch.from_numpy(place)], *map(torch.from_numpy, (row, share, box, is_cut))]
    return Mixing(*(values[places] for values in by_place))


def mix(images: Tensor, mixing: Mixing, indices: Tensor) -> Tensor:
    """Return a group of images, each mixed with its partner of the group.

    Args:
        images: the whole group, (m, 3, side, side) float, on any device.
        mixing: mixing of all images of the epoch.
        indices: indices of the group's images, (m,) int64 in host memory.
    """
    device = images.device
    row, share, box, is_cut = (
        values[indices].to(device, non_blocking=True)
        for values in (mixing.row, mixing.share, mixing.box, mixing.is_cut)
    )
    at = torch.arange(images.shape[-1], device=device)
    across = (at >= box[:, 1:2]) & (at < box[:, 3:4])
    down = (at >= box[:, 0:1]) & (at < box[:, 2:3])
    outside = ~(down[:, :, None] & across[:, None, :])
    own = torch.where(is_cut[:, None, None], outside.to(share.dtype), share[:, None, None])[:, None]
    return torch.lerp(images.index_select(0, row), images, own)


@dataclass(frozen=True, eq=False)
class Targets:
    """Labels of n images, in the order in which they are trained on."""

    labels: Tensor
    """Class of each image, (n,) int64."""
    partners: Tensor | None = None
    """Class of the image that each is mixed with, (n,) int64; None if none is mixed."""
    shares: Tensor | None = None
    """Share of the first class, (n,) float32; None if none is mixed."""

    def part(self, start: int, stop: int) -> "Targets":
        """Return the targets of the images [start, stop)."""
        if self.partners is None or self.shares is None:
            return Targets(self.labels[start:stop])
        return Targets(self.labels[start:stop], self.partners[start:stop], self.shares[start:stop])

    def tensors(self) -> list[Tensor]:
        """Return the tensors that are not None."""
        return [given for given in (self.labels, self.partners, self.shares) if given is not None]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        """Return targets whose tensors are `change` of these."""
        return Targets(*map(change, self.tensors()))

    def loss(self, logits: Tensor, weights: Tensor | None, label_smoothing: float) -> Tensor:
        """Return the mean cross-entropy, weighted by class, of logits (n, classes).

        A mixed image counts once for each of its two classes, by their shares.
        """
        if self.partners is None or self.shares is None:
            return cross_entropy(logits, self.labels, weights, label_smoothing=label_smoothing)
        total, count = logits.new_zeros(()), logits.new_zeros(())
        for labels, shares in ((self.labels, self.shares), (self.partners, 1 - self.shares)):
            losses = cross_entropy(logits, labels, weights, reduction="none", label_smoothing=label_smoothing)
            total = total + (shares * losses).sum()
            count = count + (shares if weights is None else shares * weights[labels]).sum()
        return total / count

    def right(self, logits: Tensor) -> Tensor:
        """Return how many of the predictions are right; a mixed image counts by the share of the predicted class."""
        predicted = logits.argmax(dim=1)
        if self.partners is None or self.shares is None:
            return (predicted == self.labels).sum()
        shares = self.shares.double()
        return (shares * (predicted == self.labels) + (1 - shares) * (predicted == self.partners)).sum()


def build_targets(labels: Tensor, order: Tensor, mixing: Mixing | None, device: torch.device) -> Targets:
    """Return the targets of an epoch on the device; `labels` are those of all images, (n,) int64."""
    if mixing is None:
        return Targets(labels[order].to(device))
    partners, shares = labels[mixing.partner[order]], mixing.share[order]
    return Targets(labels[order].to(device), partners.to(device), shares.to(device))
