"""Measure parts 1 and 4 of the benchmark: training and augmentation, without Ray, Optuna and MLflow.

A side is one implementation to be compared. Two processes measure the sides, one with a plain environment for the
assignment's loop, one with the environment of a study's trials for ours. Each round measures every side once.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from study.augmentation.augment import augment, draw
from study.compute.feature_store import FeatureStore
from study.compute.features import CHUNK, WINDOW, epoch_outputs, rebatch
from study.compute.gpu_cache import constants_kept, release_memory
from study.compute.hardware import Hardware, choose_hardware
from study.config.load_toml import baseline_recipe, load_baseline
from study.config.plan import probe_recipe
from study.config.recipe import Recipe
from study.data.images import Images
from study.dispatch.cluster import PLAIN_ENVIRONMENT, TRIAL_ENVIRONMENT
from study.models.classifier import Classifier, build
from study.models.preprocessing import preprocessing
from study.training import reference
from study.training.loop import batch_sizes, train
from study.training.probe import compute_features
from study.training.updates import build_optimizer

ROUNDS = 3
CLASSES = 10
STORE_BYTES = 50 * 10**9

Asked = Mapping[str, Any]
"""Request to a measuring process: side and number of images; in part 1 also the recipe and a folder for stores."""
Measure = Callable[[Images, Asked], float]
"""A function that measures one side on images, and returns images per second."""


@dataclass(frozen=True)
class Figure:
    """One quantity, measured one or more times."""

    part: int
    name: str
    unit: str
    values: list[float]
    """Measured values, in the order of measurement."""
    images: int | None = None
    """Number of images that each value covers; None if the part has no images."""
    trials: int | None = None
    """Number of trials that each value covers; None if the part has no trials."""

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)


def measure_training(
    model: str, folder: Path, *, images: int, image_size: int | None = None, without: Collection[str] = ()
) -> list[Figure]:
    """Measure part 1: images per second of one training epoch of the assignment's recipe.

    Args:
        model: name of the network; the assignment's own code can train vgg16 and resnet18 only.
        folder: directory for the stores.
        images: number of images of an epoch, stored at 32 by 32 pixels.
        image_size: side of the network's input in pixels; None for the assignment's.
        without: names of the sides to leave out.
    """
    recipe = replace(baseline_recipe(model), epochs=1)
    if image_size:
        recipe = replace(recipe, image_size=image_size)
    sides = {side: how for side, how in TRAINING.items() if side not in without}
    measured = _measure_in_turn(sides, {"images": images, "recipe": recipe.to_dict(), "folder": str(folder)})
    return [Figure(1, f"{model}, {side}", "images/s", values, images) for side, values in measured.items()]


def measure_augmentation(images: int) -> list[Figure]:
    """Measure part 4: AutoAugment and flip, by torchvision one image at a time, and by ours in batches."""
    measured = _measure_in_turn(AUGMENTATION, {"images": images})
    return [Figure(4, side, "images/s", values, images) for side, values in measured.items()]


def _measure_in_turn(sides: Mapping[str, tuple[Measure, bool]], request: dict[str, object]) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {side: [] for side in sides}
    with _worker(PLAIN_ENVIRONMENT) as plain, _worker(TRIAL_ENVIRONMENT) as tuned:
        for _ in range(ROUNDS):
            for side, (_, is_tuned) in sides.items():
                values[side].append((tuned if is_tuned else plain)({**request, "side": side}))
    return values


def make_images(count: int) -> Images:
    """Return random images (count, 3, 32, 32) uint8 of ten classes; the content of images does not change times."""
    generator = np.random.default_rng(0)
    return Images(generator.integers(0, 256, (count, 3, 32, 32), np.uint8), np.arange(count) % CLASSES)


def serve() -> None:
    """Measure one side per request: requests are JSON lines on standard input, answers are lines on standard output.

    One batch of the assignment's size warms each side up before its first measurement. GPU memory is released before
    each measurement, so that no side profits from the tensors of another side or round.
    """
    answers = os.fdopen(os.dup(1), "w")  # output that libraries print goes to standard error instead
    os.dup2(2, 1)
    warm: set[str] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        measure, _ = {**TRAINING, **AUGMENTATION}[asked["side"]]
        if asked["side"] not in warm:
            measure(make_images(load_baseline().values["batch_size"]), asked)
            warm.add(asked["side"])
        release_memory()
        print(json.dumps(measure(make_images(asked["images"]), asked)), file=answers, flush=True)


def _as_written(images: Images, asked: Asked) -> float:
    recipe = Recipe(**asked["recipe"])
    network = reference.build(recipe.model, classes=CLASSES, pretrained=None, seed=0)
    epochs = reference.train(network, recipe, images, seed=0, hardware=reference.choose_hardware())
    return len(images) / _seconds(lambda: list(epochs))


def _with_empty_store(images: Images, asked: Asked) -> float:
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as directory:
        return _train(images, asked, FeatureStore(Path(directory), STORE_BYTES))


def _with_full_store(images: Images, asked: Asked) -> float:
    """Train as a later trial of a warm process does: read the store's files, or their copies in GPU memory."""
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as directory:
        store = FeatureStore(Path(directory), STORE_BYTES, tolerance_s=float("inf"))
        _train(images, asked, store)
        return _train(images, asked, store)


def _train(images: Images, asked: Asked, store: FeatureStore) -> float:
    recipe = Recipe(**asked["recipe"])
    hardware = choose_hardware("auto")
    (result,) = train(_build(recipe), recipe, images, classes=CLASSES, seed=0, hardware=hardware, features=store)
    return result.images_per_s


def _bare_suffix(images: Images, asked: Asked) -> float:
    """Train the suffix alone on tensors in memory; this is the upper limit for sharing the prefix's outputs."""
    recipe = Recipe(**asked["recipe"])
    hardware = choose_hardware("auto")
    classifier = _build(recipe)
    classifier.move_to(hardware.device)
    order = torch.arange(len(images))
    chunks = epoch_outputs(
        classifier, recipe, images, order,
        augmentation=(0, 1), hardware=hardware, store=None,
    )  # fmt: skip
    batches = list(rebatch(chunks, batch_sizes(len(images), recipe.batch_size)))
    targets = torch.from_numpy(images.labels).to(hardware.device).split(recipe.batch_size)
    trained = [parameter for parameter in classifier.suffix.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(recipe, trained)
    classifier.set_training()

    def epoch() -> None:
        for batch, target in zip(batches, targets, strict=True):
            with hardware.autocast():
                loss = cross_entropy(classifier.suffix(batch).float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device

    return len(images) / _seconds(epoch)


def _probe_features(images: Images, asked: Asked) -> float:
    """Compute a linear probe's features, and store what the probe stores."""
    recipe, classifier, hardware = _probed(asked)
    with tempfile.TemporaryDirectory(dir=asked["folder"]) as directory:
        store = FeatureStore(Path(directory), STORE_BYTES)
        return len(images) / _seconds(lambda: compute_features(classifier, recipe, images, hardware, store))


def _bare_forward(images: Images, asked: Asked) -> float:
    """Run preprocessing and the whole network in a bare loop; this is the upper limit for a probe."""
    recipe, classifier, hardware = _probed(asked)
    preprocess = preprocessing(recipe.model, recipe.image_size)
    classifier.set_evaluation()

    def run() -> None:
        with torch.inference_mode(), hardware.autocast():
            for batch in torch.from_numpy(images.pixels).split(CHUNK):
                inputs = batch.to(hardware.device).contiguous(memory_format=torch.channels_last)
                classifier.network(preprocess(inputs)).cpu()

    return len(images) / _seconds(run)


def _probed(asked: Asked) -> tuple[Recipe, Classifier, Hardware]:
    recipe, hardware = probe_recipe(Recipe(**asked["recipe"])), choose_hardware("auto")
    classifier = _build(recipe)
    classifier.move_to(hardware.device)
    return recipe, classifier, hardware


def _build(recipe: Recipe) -> Classifier:
    return build(recipe.model, classes=CLASSES, unfreeze_depth=recipe.unfreeze_depth, pretrained=None, seed=0)


def _augment_one_by_one(images: Images, asked: Asked) -> float:
    transform = v2.Compose([v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.RandomHorizontalFlip()])
    pixels = torch.from_numpy(images.pixels[:])
    return len(images) / _seconds(lambda: [transform(image) for image in pixels])


def _augment_at_once(images: Images, asked: Asked) -> float:
    """Augment where a trial would: on the GPU if there is one, with the images already there."""
    device = choose_hardware("auto").device
    pixels = torch.from_numpy(images.pixels).to(device)

    def epoch() -> None:
        draws = draw(len(images), seed=0, epoch=1)
        with constants_kept(device):
            for window in torch.arange(len(images)).split(WINDOW):
                augment(pixels[window.to(device, non_blocking=True)], draws.take(window))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return len(images) / _seconds(epoch)


TRAINING: dict[str, tuple[Measure, bool]] = {
    "as written": (_as_written, False),
    "as written, memory kept": (_as_written, True),
    "empty store": (_with_empty_store, True),
    "full store": (_with_full_store, True),
    "bare suffix": (_bare_suffix, True),
    "probe": (_probe_features, True),
    "bare forward": (_bare_forward, True),
}
"""Sides of part 1, by name: the measuring function, and whether it runs in the environment of a study's trials."""
AUGMENTATION: dict[str, tuple[Measure, bool]] = {
    "torchvision, one by one": (_augment_one_by_one, False),
    "ours": (_augment_at_once, True),
}
"""Sides of part 4, in the same form."""


@contextmanager
def _worker(environment: dict[str, str]) -> Iterator[Callable[[dict[str, object]], float]]:
    """Start a measuring process, and yield a function that sends it a request and returns images per second."""
    command = [sys.executable, "-c", "from study.bench.training import serve; serve()"]
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
