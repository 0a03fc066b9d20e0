"""Train as the assignment's solution was written: the reference for speed, and for `--baseline --as-written`.

This module does not know the feature store or checkpoints. It keeps that solution's mistakes on purpose:
- VGG16's transforms preprocess the images of both models;
- AutoAugment and the flip come after normalisation, so colour operations get values outside [0, 1] and clamp most of
  them (with version 2 of torchvision's transforms; version 1 can posterise, solarise and equalise only uint8 images);
- the test images are augmented and flipped too;
- BatchNorm statistics of the frozen layers drift, because the whole network is in training mode;
- images are preprocessed one by one, in fp32, without channels-last.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import VGG16_Weights, get_model
from torchvision.transforms import v2

from study.compute.hardware import Hardware
from study.config.recipe import Recipe
from study.data.images import Images
from study.seeding import derive_seed

TRAINED = {"vgg16": ("features.24", "features.26", "features.28", "classifier"), "resnet18": ("layer4", "fc")}
"""Names of the trained layers of each model: the last convolutional block and all layers after it."""


def choose_hardware() -> Hardware:
    """Choose the GPU, else the CPU, at fp32, and allow CUDA's faster, nondeterministic algorithms again."""
    torch.use_deterministic_algorithms(False)
    return Hardware(torch.device("cuda" if torch.cuda.is_available() else "cpu"), "fp32")


def build(model: str, *, classes: int, pretrained: dict[str, Tensor] | None, seed: int) -> nn.Module:
    """Build torchvision's `vgg16` or `resnet18` with a new last layer; freeze all layers that TRAINED does not name.

    Args:
        model: vgg16 or resnet18.
        classes: number of outputs of the new last layer.
        pretrained: state dict with torchvision's names, possibly without the last layer; None for untrained weights.
        seed: seed of all weights that are not pretrained.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "as-written"))
        network: nn.Module = get_model(model, num_classes=classes)
    if pretrained is not None:
        network.load_state_dict(pretrained, strict=False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad = name.startswith(TRAINED[model])
    return network


class Epoch(NamedTuple):
    """Training results of one epoch."""

    number: int
    """Number of the epoch, counted from 1."""
    loss: float
    """Mean cross-entropy over the training images."""
    accuracy: float
    """Fraction of training images that were classified correctly during training, in [0, 1]."""


def train(
    network: nn.Module,
    recipe: Recipe,
    images: Images,
    *,
    seed: int,
    hardware: Hardware,
    watch: Callable[[int, int], None] | None = None,
) -> Iterator[Epoch]:
    """Train `network` in place and yield each epoch; after each batch, call `watch(epoch, images so far in it)`."""
    torch.manual_seed(derive_seed(seed, "as-written"))
    loader = _loader(images, recipe, shuffle=True)
    device = hardware.device
    network.to(device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=recipe.lr)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        total, done = 0.0, 0
        right = torch.zeros((), dtype=torch.long, device=device)
        for batch, labels in loader:
            batch, labels = batch.to(device), labels.to(device)
            optimizer.zero_grad()
            scores = network(batch)
            loss = criterion(scores, labels)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
            right += (scores.detach().argmax(dim=1) == labels).sum()
            done += len(batch)
            if watch:
                watch(epoch, done)
        yield Epoch(epoch, total / len(images), right.item() / len(images))


def first_batch(recipe: Recipe, images: Images, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the first batch that `train` uses: images (n, 3, side, side) float32, normalised, and labels (n,)."""
    torch.manual_seed(derive_seed(seed, "as-written"))
    batch, labels = next(iter(_loader(images, recipe, shuffle=True)))
    return batch, labels


def evaluate(network: nn.Module, recipe: Recipe, images: Images, *, seed: int, hardware: Hardware) -> Tensor:
    """Return the scores (n, classes) of `images`, which are augmented like the training images."""
    torch.manual_seed(derive_seed(seed, "as-written-test"))
    network.eval()
    with torch.no_grad():
        return torch.cat([network(batch.to(hardware.device)) for batch, _ in _loader(images, recipe, shuffle=False)])


class _AsWritten(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A data set that preprocesses an image at each access, from PIL, like torchvision's CIFAR10."""

    def __init__(self, images: Images, image_size: int) -> None:
        self._images = images
        preset = VGG16_Weights.DEFAULT.transforms
        resize_size = round(image_size * preset().resize_size[0] / preset().crop_size[0])
        self._transform = v2.Compose(
            [
                preset(crop_size=image_size, resize_size=resize_size),
                v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
                v2.RandomHorizontalFlip(),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self._images.pixels[index].transpose(1, 2, 0))
        return self._transform(picture), int(self._images.labels[index])


def _loader(images: Images, recipe: Recipe, *, shuffle: bool) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(_AsWritten(images, recipe.image_size), batch_size=recipe.batch_size, shuffle=shuffle)
