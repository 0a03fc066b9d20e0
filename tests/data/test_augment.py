"""Augmentation of a whole epoch: what is drawn, and that it equals torchvision's, one image at a time."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from study.data.augment import Draws, augment, draw

TORCHVISION = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)


def every_draw() -> Draws:
    """Each sub-policy with each pair of signs, and both, one or none of its operations applied; a third flipped."""
    outcomes = [0.0, 0.999]  # applies; is above any probability of the policy
    rows = list(product(range(25), outcomes, outcomes, [False, True], [False, True]))
    return Draws(
        policy=torch.tensor([row[0] for row in rows]),
        probability=torch.tensor([row[1:3] for row in rows]),
        sign=torch.tensor([row[3:5] for row in rows]),
        flip=torch.arange(len(rows)) % 3 == 0,
    )


def noise(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


def smooth(n: int, height: int, width: int) -> Tensor:
    """Colour gradients with flat, saturated parts, as photographs have them."""
    corners = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 320 - 32
    return interpolate(corners, (height, width), mode="bilinear").clamp(0, 255).to(torch.uint8)


def one_by_one(images: Tensor, draws: Draws) -> Tensor:
    """Apply the draws as torchvision's `AutoAugment.forward` and `RandomHorizontalFlip` do."""
    done = []
    for image, policy, drawn, signs, flip in zip(
        images, draws.policy, draws.probability, draws.sign, draws.flip, strict=True
    ):
        for (name, probability, index), value, negative in zip(
            TORCHVISION._policies[int(policy)], drawn, signs, strict=True
        ):
            if not value <= probability:
                continue
            magnitudes_of, signed = TORCHVISION._AUGMENTATION_SPACE[name]
            magnitudes = magnitudes_of(10, *image.shape[-2:])
            magnitude = 0.0 if magnitudes is None else float(magnitudes[index])
            if signed and negative:
                magnitude *= -1
            image = TORCHVISION._apply_image_or_video_transform(
                image, name, magnitude, interpolation=TORCHVISION.interpolation, fill=TORCHVISION._fill
            )
        done.append(v2.functional.horizontal_flip(image) if flip else image)
    return torch.stack(done)


@pytest.mark.parametrize("make", [noise, smooth])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 29), (40, 24), (2, 5), (1, 1)])
def test_augment_every_draw_equals_torchvision_one_by_one(make, height, width):
    """Bit for bit, for all 25 sub-policies, signs and outcomes, though groups share a kernel's call."""
    draws = every_draw()
    images = make(len(draws), height, width)
    assert torch.equal(augment(images, draws), one_by_one(images, draws))


def test_augment_drawn_epoch_equals_torchvision_one_by_one():
    images, draws = smooth(2000, 32, 32), draw(2000, seed=0, epoch=1)
    assert torch.equal(augment(images, draws), one_by_one(images, draws))


def test_augment_large_images_equal_torchvision_one_by_one():
    """Contrast takes a mean of more values than float32 can sum exactly."""
    draws = every_draw().take(range(0, 400, 9))
    images = noise(len(draws), 300, 290)
    assert torch.equal(augment(images, draws), one_by_one(images, draws))


def test_augment_equals_torchvision_for_more_than_a_chunk():
    draws = every_draw().take([64] * 150)
    images = noise(150, 32, 32)
    assert torch.equal(augment(images, draws), one_by_one(images, draws))


def test_augment_subset_equals_the_same_rows_of_the_whole():
    images, draws = noise(300, 32, 32), draw(300, seed=0, epoch=1)
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:77]
    assert torch.equal(augment(images[rows], draws.take(rows)), augment(images, draws)[rows])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_augment_on_a_gpu_agrees_with_the_cpu():
    """But for one value in a hundred by more than a grey level: a rotation may round to the next pixel."""
    images, draws = smooth(2000, 32, 32), draw(2000, seed=0, epoch=1)
    differs = (augment(images.cuda(), draws).cpu().int() - augment(images, draws).int()).abs() > 1
    assert differs.float().mean() < 0.01


def test_augment_leaves_its_input_as_it_was():
    images = noise(400, 8, 8)
    before = images.clone()
    augment(images, every_draw())
    assert torch.equal(images, before)


@pytest.mark.parametrize("n", [0, 1])
def test_augment_of_no_or_one_image_keeps_shape_and_type(n):
    images = noise(n, 8, 12)
    augmented = augment(images, draw(n, seed=0, epoch=1))
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8


def test_augment_without_outcomes_only_flips():
    draws = every_draw().take([12, 12])
    draws = Draws(draws.policy, torch.full((2, 2), 0.999), draws.sign, torch.tensor([False, True]))
    images = noise(2, 8, 8)
    assert torch.equal(augment(images, draws), torch.stack([images[0], images[1].flip(-1)]))


def test_draw_same_seed_and_epoch_is_the_same():
    first, second = draw(50, seed=3, epoch=2), draw(50, seed=3, epoch=2)
    assert all(torch.equal(vars(first)[name], vars(second)[name]) for name in vars(first))


@pytest.mark.parametrize("other", [{"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}])
def test_draw_other_seed_or_epoch_differs(other):
    assert not torch.equal(draw(50, seed=3, epoch=2).probability, draw(50, **other).probability)


def test_draw_does_not_depend_on_later_images():
    few, many = draw(7, seed=0, epoch=1), draw(1000, seed=0, epoch=1).take(range(7))
    assert all(torch.equal(vars(few)[name], vars(many)[name]) for name in vars(few))


def test_draw_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    draw(10, seed=0, epoch=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_draw_is_uniform_over_policies_signs_and_flips():
    draws = draw(50_000, seed=0, epoch=1)
    counts = draws.policy.bincount(minlength=25)
    assert len(counts) == 25
    assert (counts - 2000).abs().max() < 5 * 2000**0.5  # five standard deviations
    for half in (draws.sign[:, 0], draws.sign[:, 1], draws.flip, draws.probability[:, 0] < 0.5):
        assert abs(half.float().mean().item() - 0.5) < 5 * 0.5 / 50_000**0.5


def test_draws_take_keeps_the_order_of_indices():
    draws = draw(10, seed=0, epoch=1)
    assert torch.equal(draws.take([7, 0, 7]).probability, draws.probability[torch.tensor([7, 0, 7])])
