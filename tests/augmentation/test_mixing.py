"""What mixup and CutMix make of images and labels, and that it follows from seed and epoch."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from study.augmentation.mixing import Targets, build_targets, draw_mixing, mix


def drawn(n=200, *, mixup=0.0, cutmix=0.0, group=64, seed=0, epoch=1):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5))
    return order, draw_mixing(order, mixup=mixup, cutmix=cutmix, side=16, group=group, seed=seed, epoch=epoch)


def mixed(images, order, mixing, group=64):
    """Mix all images, and return them in the order of their indices."""
    parts = torch.cat([mix(images[indices], mixing, indices) for indices in order.split(group)])
    return parts[order.argsort()]


def noise(n=200):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_mixing_is_none_without_alphas():
    assert drawn()[1] is None


def test_mixup_blends_each_image_with_its_partner():
    images, (order, mixing) = noise(), drawn(mixup=0.4)
    share = mixing.share[:, None, None, None]
    expected = share * images + (1 - share) * images[mixing.partner]
    assert torch.allclose(mixed(images, order, mixing), expected, atol=1e-6)


def test_cutmix_puts_a_box_of_the_partner_into_each_image():
    images, (order, mixing) = noise(), drawn(cutmix=1.0)
    result = mixed(images, order, mixing)
    for image, partner, share, box, done in zip(
        images, images[mixing.partner], mixing.share, mixing.box.tolist(), result, strict=True
    ):
        top, left, bottom, right = box
        expected = image.clone()
        expected[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        assert torch.equal(done, expected)
        assert share.item() == pytest.approx(1 - (bottom - top) * (right - left) / 256)


def test_each_image_is_a_partner_once_within_its_group():
    order, mixing = drawn(mixup=1.0)
    assert mixing.partner.sort().values.tolist() == [*range(200)]
    groups = order.argsort() // 64
    assert torch.equal(groups, groups[mixing.partner])


@pytest.mark.parametrize(("alpha", "variance"), [(0.2, 1 / (4 * 1.4)), (1.0, 1 / 12)])
def test_mixup_shares_have_the_moments_of_the_beta_distribution(alpha, variance):
    share = drawn(20_000, mixup=alpha)[1].share
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.var().item() == pytest.approx(variance, rel=0.05)


def test_both_kinds_get_half_of_the_images_each():
    mixing = drawn(10_000, mixup=0.2, cutmix=1.0)[1]
    assert mixing.is_cut.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert mixing.box[~mixing.is_cut].sum() == 0


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 2}, {"mixup": 0.5}])
def test_mixing_differs_between_seeds_epochs_and_alphas(other):
    first, same, changed = (drawn(**{"mixup": 0.2, **change})[1].digest for change in ({}, {}, other))
    assert first == same != changed


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])])
def test_loss_of_mixed_images_is_that_of_soft_labels(smoothing, weights):
    generator = torch.Generator().manual_seed(0)
    logits, shares = torch.randn(9, 3, generator=generator), torch.rand(9, generator=generator)
    labels, partners = torch.arange(9) % 3, torch.arange(9) // 3
    soft = shares[:, None] * one_hot(labels, 3) + (1 - shares[:, None]) * one_hot(partners, 3)
    total = cross_entropy(logits, soft, weights, reduction="sum", label_smoothing=smoothing)
    count = 9 if weights is None else (soft @ weights).sum()
    loss = Targets(labels, partners, shares).loss(logits, weights, smoothing)
    assert loss.item() == pytest.approx((total / count).item(), rel=1e-5)


def test_loss_of_whole_shares_is_that_of_the_labels():
    logits, labels, weights = torch.randn(6, 3), torch.arange(6) % 3, torch.tensor([0.5, 1.0, 3.0])
    whole = Targets(labels, labels.flip(0), torch.ones(6)).loss(logits, weights, 0.1)
    assert whole.item() == pytest.approx(Targets(labels).loss(logits, weights, 0.1).item(), rel=1e-5)


def test_right_counts_a_mixed_image_by_shares():
    logits = torch.eye(3)[[0, 1, 2]]
    targets = Targets(torch.tensor([0, 0, 0]), torch.tensor([1, 1, 1]), torch.tensor([0.75, 0.75, 0.75]))
    assert targets.right(logits).item() == pytest.approx(0.75 + 0.25 + 0)


def test_build_targets_names_the_classes_of_images_and_partners():
    order, mixing = drawn(10, mixup=1.0)
    labels = torch.arange(10) * 7
    targets = build_targets(labels, order, mixing, torch.device("cpu"))
    assert torch.equal(targets.labels, labels[order])
    assert torch.equal(targets.partners, labels[mixing.partner[order]])
    assert torch.equal(targets.shares, mixing.share[order])
