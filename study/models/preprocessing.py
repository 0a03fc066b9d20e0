"""Preprocess stored images for a network, as its pretrained weights expect them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from study.networks.libraries import preset


def preprocessing(model: str, image_size: int, fit: str = "crop") -> Callable[[Tensor], Tensor]:
    """Return the transforms of the model's weights, scaled from their own image side to `image_size`.

    They map images (n, 3, height, width) uint8 to (n, 3, image_size, image_size) float32 on the same device and in the
    same memory format: resize of the shorter side, centre crop, and the weights' mean and deviation. With the fit pad
    or squash, nothing is cropped: the stored images are squares, which are resized to `image_size`. On an ARM CPU or
    one with AVX2, the result equals torchvision's for PIL images, except for rare single grey levels. Elsewhere the
    resize computes in floats, like torchvision's for tensors, and may round a value to the next grey level.
    """
    own, size = preset(model), resized_size(model, image_size, fit)
    mean = [255 * value for value in own.mean]
    deviation = [255 * value for value in own.std]

    def preprocess(images: Tensor) -> Tensor:
        resized = functional.resize(images, size, own.interpolation, antialias=own.antialias)
        cropped = functional.center_crop(resized, [image_size]).to(torch.float32)
        normalized: Tensor = functional.normalize(cropped, mean, deviation, inplace=True)
        return normalized

    return preprocess


def resized_size(model: str, image_size: int, fit: str) -> list[int]:
    """Return what `preprocessing` resizes to: the length of the shorter side in pixels, or [height, width]."""
    own = preset(model)
    return [own.rounding(image_size * own.resize[0] / own.resize[1])] if fit == "crop" else [image_size, image_size]


def to_colours(model: str, inputs: Tensor) -> Tensor:
    """Undo the normalisation of `preprocessing`: return colours (n, 3, side, side) float32 in [0, 1]."""
    own = preset(model)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
    return (inputs * deviation + mean).clamp(0, 1)
