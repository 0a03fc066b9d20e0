"""Preprocessing in batches equals the weights' own transforms."""

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.models import get_model_weights

from study.models.preprocessing import preprocessing


def smooth_images() -> Tensor:
    noise = torch.rand(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    return interpolate(noise, (32, 40), mode="bilinear").mul(255).to(torch.uint8)


@pytest.mark.parametrize(
    "model", ["vgg16", "resnet18", "resnet50", "efficientnet_b0", "efficientnet_b1", "convnext_tiny"]
)
def test_preprocessing_equals_the_weights_own_transforms_of_pil_images(model: str) -> None:
    """Within one grey level, at the size that the weights were made for."""
    images = smooth_images()
    preset = get_model_weights(model)["DEFAULT"].transforms()
    one_by_one = torch.stack([preset(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images])
    batch = preprocessing(model, preset.crop_size[0])(images)
    grey_levels = (batch - one_by_one).abs() * 255 * torch.tensor(preset.std).view(3, 1, 1)
    assert grey_levels.max() < 1.01


def test_preprocessing_of_a_batch_equals_one_by_one() -> None:
    images, preprocess = smooth_images(), preprocessing("resnet18", 64)
    assert torch.equal(preprocess(images), torch.cat([preprocess(image[None]) for image in images]))


def test_preprocessing_scales_the_resize_with_the_image_size() -> None:
    """At 112 pixels the weights' 256 become 128, of which the crop shows the middle."""
    images = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (images[:, :, 8:120, 8:120] / 255 - mean) / std
    torch.testing.assert_close(preprocessing("resnet18", 112)(images), expected)


def test_preprocessing_leaves_its_input_and_the_memory_format_alone() -> None:
    images = smooth_images().contiguous(memory_format=torch.channels_last)
    before = images.clone()
    preprocessed = preprocessing("resnet18", 64)(images)
    assert torch.equal(images, before)
    assert preprocessed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(preprocessed, preprocessing("resnet18", 64)(images.contiguous()))


@pytest.mark.parametrize("fit", ["pad", "squash"])
def test_preprocessing_crops_nothing_of_fitted_images(fit: str) -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(preprocessing("resnet18", 64, fit)(images), (images / 255 - mean) / std)
