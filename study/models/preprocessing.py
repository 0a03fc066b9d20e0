"""Preprocess stored images for a network, as its pretrained weights expect them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.transforms.v2 import functional


def preprocessing(model: str, image_size: int, fit: str = "crop") -> Callable[[Tensor], Tensor]:
    """Return the transforms of the model's weights, scaled from their own image side to `image_size`.

    They map images (n, 3, height, width) uint8 to (n, 3, image_size, image_size) float32 on the same device and in the
    same memory format: resize of the shorter side, centre crop, and ImageNet's mean and deviation. With the fit pad or
    squash, nothing is cropped: the stored images are squares, which are resized to `image_size`. On an ARM CPU or
    one with AVX2, the result equals torchvision's for PIL images, except for rare single grey levels. Elsewhere the
    resize computes in floats, like torchvision's for tensors, and may round a value to the next grey level.
    """
    preset = default_weights(model).transforms()
    cropped_from = round(image_size * preset.resize_size[0] / preset.crop_size[0])
    resize_size = [cropped_from] if fit == "crop" else [image_size, image_size]
    mean = [255 * value for value in preset.mean]
    deviation = [255 * value for value in preset.std]

    def preprocess(images: Tensor) -> Tensor:
        resized = functional.resize(images, resize_size, preset.interpolation, antialias=preset.antialias)
        cropped = functional.center_crop(resized, [image_size]).to(torch.float32)
        normalized: Tensor = functional.normalize(cropped, mean, deviation, inplace=True)
        return normalized

    return preprocess


def to_colours(model: str, inputs: Tensor) -> Tensor:
    """Undo the normalisation of `preprocessing`: return colours (n, 3, side, side) float32 in [0, 1]."""
    preset = default_weights(model).transforms()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    return (inputs * deviation + mean).clamp(0, 1)


def default_weights(model: str) -> WeightsEnum:
    """Return the weights that torchvision loads for 'DEFAULT'."""
    default: WeightsEnum = get_model_weights(model)["DEFAULT"]
    return default
