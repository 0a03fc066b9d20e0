"""The assignment's solution as it was written: the reference for speed, and for `--baseline --as-written`.

It keeps that solution's mistakes on purpose, and nothing else of ours:
- VGG16's transforms prepare the images of both models;
- AutoAugment and the flip come after normalisation, so that colour operations work on values outside [0, 1], most of
  which they clamp away (version 2 of torchvision's transforms: version 1 refuses to posterise, solarise or equalise
  what is not uint8);
- the test images are augmented and flipped as well;
- BatchNorm of the frozen layers drifts, since the whole network is put into training mode;
- images are prepared one by one, in fp32, without channels-last.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import VGG16_Weights, get_model
from torchvision.transforms import v2

from study.config import Recipe
from study.data import Images
from study.seeding import derive_seed

TRAINED = {"vgg16": ("features.24", "features.26", "features.28", "classifier"), "resnet18": ("layer4", "fc")}
"""The last convolutional block and what follows it."""


def choose_device() -> torch.device:
    """Take the GPU if there is one, with CUDA as fast as it is by default, whatever this process has asked of it."""
    torch.use_deterministic_algorithms(False)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(model: str, *, classes: int, pretrained: dict[str, Tensor] | None, seed: int) -> nn.Module:
    """Build torchvision's `vgg16` or `resnet18`, all frozen but its last block and what follows, last layer replaced.

    Args:
        model: vgg16 or resnet18.
        classes: outputs of the new last layer.
        pretrained: a state dict under torchvision's names, perhaps without the last layer; None for untrained weights.
        seed: of the new values.
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
    """What an epoch came to, over its images as they were trained on."""

    number: int
    """From 1."""
    loss: float
    """Mean cross-entropy."""
    accuracy: float
    """The share that was classified rightly, in [0, 1]."""


def train(
    network: nn.Module,
    recipe: Recipe,
    images: Images,
    *,
    seed: int,
    device: torch.device,
    watch: Callable[[int, int], None] | None = None,
) -> Iterator[Epoch]:
    """Train in place and yield each epoch; `watch` is told after each batch which epoch it is and its images so far."""
    torch.manual_seed(derive_seed(seed, "as-written"))
    loader = _loader(images, recipe, shuffle=True)
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
    """Return the first batch that `train` sees: images (n, 3, side, side) float32, normalised, and labels (n,)."""
    torch.manual_seed(derive_seed(seed, "as-written"))
    batch, labels = next(iter(_loader(images, recipe, shuffle=True)))
    return batch, labels


def evaluate(network: nn.Module, recipe: Recipe, images: Images, *, seed: int, device: torch.device) -> Tensor:
    """Return the scores (n, classes) of images that are augmented like the training images."""
    torch.manual_seed(derive_seed(seed, "as-written-test"))
    network.eval()
    with torch.no_grad():
        return torch.cat([network(batch.to(device)) for batch, _ in _loader(images, recipe, shuffle=False)])


class _AsWritten(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Prepares an image each time it is asked for, from PIL, as torchvision's CIFAR10 does."""

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
