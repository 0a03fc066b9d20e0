"""The benchmark's parts 1 and 4: training and augmentation, with torch and torchvision alone.

Each side is measured in a process of its own, in the environment that its trials have: the assignment's loop in a plain
one, ours in that of a study's trials. The rounds go through the sides in turn.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from study import notebook
from study.augment import augment, draw
from study.cluster import TRIAL_ENVIRONMENT
from study.config import Recipe
from study.data import Images
from study.features import autocast, epoch_outputs, rebatch
from study.models import build
from study.search_space import baseline_recipe
from study.store import FeatureStore
from study.training import batch_sizes, build_optimizer, choose_hardware, train

ROUNDS = 3
CLASSES = 10
STORE_BYTES = 50 * 10**9


@dataclass(frozen=True)
class Figure:
    """One thing, measured several times."""

    part: int
    name: str
    unit: str
    values: list[float]
    """In the order in which they were measured."""

    @property
    def median(self) -> float:
        """Of the values."""
        return statistics.median(self.values)


def measure_training(model: str, folder: Path, *, images: int, image_size: int | None = None) -> list[Figure]:
    """Measure images a second of one training epoch of the assignment's recipe, part 1.

    Args:
        model: vgg16 or resnet18.
        folder: for the stores.
        images: of an epoch, 32 by 32 pixels as they are stored.
        image_size: that the network sees; None for the assignment's.
    """
    request = {"model": model, "images": images, "image_size": image_size, "folder": str(folder)}
    sides = {"as written": {}, **dict.fromkeys(("empty store", "full store", "bare suffix"), TRIAL_ENVIRONMENT)}
    values: dict[str, list[float]] = {side: [] for side in sides}
    with _worker({}) as plain, _worker(TRIAL_ENVIRONMENT) as trial:
        for _ in range(ROUNDS):
            for side, environment in sides.items():
                measure = trial if environment else plain
                values[side].append(measure({**request, "side": side}))
    return [Figure(1, f"{model}, {side}", "images/s", found) for side, found in values.items()]


def measure_augmentation(images: int) -> list[Figure]:
    """Measure AutoAugment and flip, part 4: one image at a time through torchvision, and an epoch at once."""
    pixels = torch.from_numpy(make_images(images).pixels)
    one_by_one = v2.Compose([v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.RandomHorizontalFlip()])

    def torchvisions() -> None:
        for image in pixels:
            one_by_one(image)

    def ours() -> None:
        for window in torch.arange(images).split(2048):
            augment(pixels[window], draw(images, seed=0, epoch=1).take(window))

    values: dict[str, list[float]] = {"torchvision, one by one": [], "ours": []}
    ours()
    for _ in range(ROUNDS):
        for (_, found), run in zip(values.items(), (torchvisions, ours), strict=True):
            found.append(images / _seconds(run))
    return [Figure(4, name, "images/s", found) for name, found in values.items()]


def make_images(count: int) -> Images:
    """Return random images (count, 3, 32, 32) of ten classes: what they show makes no difference to time."""
    generator = np.random.default_rng(0)
    return Images(generator.integers(0, 256, (count, 3, 32, 32), np.uint8), np.arange(count) % CLASSES)


def serve() -> None:
    """Measure what each line of standard input asks for, and answer on standard output."""
    answers = os.fdopen(os.dup(1), "w")  # whatever a library prints goes elsewhere
    os.dup2(2, 1)
    warm: set[tuple[str, str]] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        recipe = baseline_recipe(asked["model"])
        changes = {"epochs": 1, "image_size": asked["image_size"] or recipe.image_size}
        recipe = Recipe.from_dict({**recipe.to_dict(), **changes})
        side = partial(SIDES[asked["side"]], recipe, folder=Path(asked["folder"]))
        if (asked["model"], asked["side"]) not in warm:
            side(make_images(recipe.batch_size))
            warm.add((asked["model"], asked["side"]))
        print(json.dumps(side(make_images(asked["images"]))), file=answers, flush=True)


def _as_written(recipe: Recipe, images: Images, folder: Path) -> float:
    device = choose_hardware("fp32").device
    network = notebook.build(recipe.model, classes=CLASSES, pretrained=None, seed=0)
    return len(images) / _seconds(lambda: list(notebook.train(network, recipe, images, seed=0, device=device)))


def _with_empty_store(recipe: Recipe, images: Images, folder: Path) -> float:
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        return _train(recipe, images, FeatureStore(directory, STORE_BYTES))
    finally:
        shutil.rmtree(directory)


def _with_full_store(recipe: Recipe, images: Images, folder: Path) -> float:
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        store = FeatureStore(directory, STORE_BYTES, tolerance_s=float("inf"))
        _train(recipe, images, store)
        return _train(recipe, images, store)
    finally:
        shutil.rmtree(directory)


def _train(recipe: Recipe, images: Images, store: FeatureStore) -> float:
    classifier = _build(recipe)
    hardware = choose_hardware("auto")
    (result,) = train(classifier, recipe, images, classes=CLASSES, seed=0, hardware=hardware, features=store)
    return result.images_per_s


def _bare_suffix(recipe: Recipe, images: Images, folder: Path) -> float:
    """Train on tensors in memory, with nothing around it: what no sharing of the prefix can surpass."""
    hardware = choose_hardware("auto")
    classifier = _build(recipe)
    classifier.network.to(hardware.device).to(memory_format=torch.channels_last)
    order = torch.arange(len(images))
    chunks = epoch_outputs(
        classifier, recipe, images, order,
        augmentation=(0, 1), device=hardware.device, precision=hardware.precision, store=None,
    )  # fmt: skip
    batches = list(rebatch(chunks, batch_sizes(len(images), recipe.batch_size)))
    targets = torch.from_numpy(images.labels).to(hardware.device).split(recipe.batch_size)
    trained = [parameter for parameter in classifier.suffix.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(recipe, trained)
    classifier.set_training()

    def epoch() -> None:
        for batch, target in zip(batches, targets, strict=True):
            with autocast(hardware.device, hardware.precision):
                loss = cross_entropy(classifier.suffix(batch).float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device

    return len(images) / _seconds(epoch)


def _build(recipe: Recipe):  # type: ignore[no-untyped-def]
    return build(recipe.model, classes=CLASSES, unfreeze_depth=recipe.unfreeze_depth, pretrained=None, seed=0)


SIDES: dict[str, Callable[..., float]] = {
    "as written": _as_written,
    "empty store": _with_empty_store,
    "full store": _with_full_store,
    "bare suffix": _bare_suffix,
}


@contextmanager
def _worker(environment: dict[str, str]) -> Iterator[Callable[[dict[str, object]], float]]:
    """Start a process that measures; yields how to ask it."""
    command = [sys.executable, "-c", "from study.bench_training import serve; serve()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as process:
        assert process.stdin and process.stdout
        asks, answers = process.stdin, process.stdout

        def measure(request: dict[str, object]) -> float:
            print(json.dumps(request), file=asks, flush=True)
            return float(json.loads(answers.readline()))

        yield measure
        asks.close()


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
