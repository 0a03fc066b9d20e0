"""Augmentation of a whole epoch: what is drawn, and that it equals torchvision's, one image at a time."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from study.augmentation.augment import Draws, augment, crop_boxes, draw, fit_after

TORCHVISION = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
DRAWN = ("policy", "probability", "sign", "flip")


def every_draw() -> Draws:
    """Each sub-policy with each pair of signs, and both, one or none of its operations applied; a third flipped."""
    outcomes = [0.0, 0.999]  # applies; is above any probability of the policy
    rows = list(product(range(25), outcomes, outcomes, [False, True], [False, True]))
    return Draws(
        policy=torch.tensor([(row[0], row[0]) for row in rows]),
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
            TORCHVISION._policies[int(policy[0])], drawn, signs, strict=True
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
    assert all(torch.equal(vars(first)[name], vars(second)[name]) for name in DRAWN)


@pytest.mark.parametrize("other", [{"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 3}])
def test_draw_other_seed_or_epoch_differs(other):
    assert not torch.equal(draw(50, seed=3, epoch=2).probability, draw(50, **other).probability)


def test_draw_does_not_depend_on_later_images():
    few, many = draw(7, seed=0, epoch=1), draw(1000, seed=0, epoch=1).take(range(7))
    assert all(torch.equal(vars(few)[name], vars(many)[name]) for name in DRAWN)


def test_draw_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    draw(10, seed=0, epoch=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_draw_is_uniform_over_policies_signs_and_flips():
    draws = draw(50_000, seed=0, epoch=1)
    counts = draws.policy[:, 0].bincount(minlength=25)
    assert len(counts) == 25
    assert (counts - 2000).abs().max() < 5 * 2000**0.5  # five standard deviations
    for half in (draws.sign[:, 0], draws.sign[:, 1], draws.flip, draws.probability[:, 0] < 0.5):
        assert abs(half.float().mean().item() - 0.5) < 5 * 0.5 / 50_000**0.5


def test_draws_take_keeps_the_order_of_indices():
    draws = draw(10, seed=0, epoch=1)
    assert torch.equal(draws.take([7, 0, 7]).probability, draws.probability[torch.tensor([7, 0, 7])])


def trivial_one_by_one(images: Tensor, draws: Draws) -> Tensor:
    """Apply the draws as torchvision's `TrivialAugmentWide.forward` does."""
    transform = v2.TrivialAugmentWide()
    return by_operations(transform, images, draws, lambda row: (row // 31, row % 31))


def rand_one_by_one(images: Tensor, draws: Draws) -> Tensor:
    """Apply the draws as torchvision's `RandAugment.forward` does."""
    return by_operations(v2.RandAugment(), images, draws, lambda row: (row, 9))


def by_operations(transform, images, draws, read):
    names, done = list(transform._AUGMENTATION_SPACE), []
    for image, rows, signs, flip in zip(images, draws.policy, draws.sign, draws.flip, strict=True):
        for row, negative in zip(rows.tolist(), signs, strict=True):
            at, index = read(row)
            magnitudes_of, signed = transform._AUGMENTATION_SPACE[names[at]]
            magnitudes = magnitudes_of(31, *image.shape[-2:])
            magnitude = 0.0 if magnitudes is None else float(magnitudes[index])
            if signed and negative:
                magnitude *= -1
            image = transform._apply_image_or_video_transform(
                image, names[at], magnitude, interpolation=transform.interpolation, fill=transform._fill
            )
        done.append(v2.functional.horizontal_flip(image) if flip else image)
    return torch.stack(done)


def crops_one_by_one(images: Tensor, draws: Draws) -> Tensor:
    """Apply the draws as torchvision's `RandomResizedCrop` does, which chooses boxes in Python's numbers."""
    done = []
    for image, numbers, flip in zip(images, draws.crop.tolist(), draws.flip, strict=True):
        height, width = image.shape[-2:]
        for area, ratio in zip(numbers[:10], numbers[10:20], strict=True):
            target = height * width * (0.08 + 0.92 * area)
            aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(numbers[20] * (height - h + 1)), int(numbers[21] * (width - w + 1))
                break
        else:
            w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
            top, left = (height - h) // 2, (width - w) // 2
        crop = v2.functional.resized_crop(image, top, left, h, w, [height, width], antialias=True)
        done.append(v2.functional.horizontal_flip(crop) if flip else crop)
    return torch.stack(done)


ONE_BY_ONE = {
    "trivialaugment": trivial_one_by_one,
    "randaugment": rand_one_by_one,
    "random-resized-crop": crops_one_by_one,
}


@pytest.mark.parametrize("kind", ONE_BY_ONE)
@pytest.mark.parametrize(("n", "height", "width"), [(200, 32, 32), (100, 17, 29), (60, 12, 48), (20, 1, 1)])
def test_augment_of_each_kind_equals_torchvision_one_by_one(kind, n, height, width):
    images, draws = smooth(n, height, width), draw(n, seed=0, epoch=1, kind=kind)
    assert torch.equal(augment(images, draws), ONE_BY_ONE[kind](images, draws))


def test_augment_every_trivial_operation_equals_torchvision():
    rows = torch.arange(14 * 31)
    signs = [torch.full((len(rows), 1), sign) for sign in (False, True)]
    images = noise(len(rows), 32, 32)
    for sign in signs:
        draws = Draws(rows[:, None], torch.zeros(len(rows), 1), sign, rows % 2 == 0, kind="trivialaugment")
        assert torch.equal(augment(images, draws), trivial_one_by_one(images, draws))


def test_augment_flip_flips_half_of_the_images_only():
    images, draws = noise(1000, 4, 4), draw(1000, seed=0, epoch=1, kind="flip")
    expected = torch.where(draws.flip[:, None, None, None], images.flip(-1), images)
    assert torch.equal(augment(images, draws), expected)
    assert abs(draws.flip.float().mean().item() - 0.5) < 5 * 0.5 / 1000**0.5


@pytest.mark.parametrize("kind", ["flip", "trivialaugment", "randaugment", "random-resized-crop"])
def test_draw_of_each_kind_does_not_depend_on_later_images(kind):
    few, many = (draw(n, seed=0, epoch=1, kind=kind).take(range(7)) for n in (7, 100))
    assert all(torch.equal(vars(few)[name], vars(many)[name]) for name in DRAWN)
    assert kind != "random-resized-crop" or torch.equal(few.crop, many.crop)


def test_crop_boxes_cover_the_area_and_ratios_of_inception():
    """Up to the rounding of sides to whole pixels."""
    boxes = crop_boxes(draw(5000, seed=0, epoch=1, kind="random-resized-crop").crop, 1000, 1000).double()
    top, left, height, width = boxes.unbind(1)
    share = height * width / 1e6
    assert 0.079 < share.min() < 0.09
    assert share.max() > 0.97
    assert 0.745 < (width / height).min() < 0.76
    assert ((top + height <= 1000) & (left + width <= 1000) & (top >= 0) & (left >= 0)).all()


def test_fit_after_a_random_crop_keeps_all_of_it():
    assert [fit_after(kind, "crop") for kind in ("random-resized-crop", "autoaugment")] == ["squash", "crop"]
