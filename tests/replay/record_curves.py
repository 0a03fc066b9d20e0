"""Record the learning curves of every recipe of a grid on several data sets: `python tests/replay/record_curves.py`.

Searches are then replayed by looking results up, with no model of them. Trains with the project's own code, in one
thread and fp32. README.md describes the file; the images and the weights are not in this repository.
"""

import argparse
import csv
import gzip
import io
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from study.compute.feature_store import FeatureStore
from study.compute.hardware import choose_hardware
from study.config.load_toml import baseline_recipe
from study.config.recipe import Recipe
from study.data.images import Dataset, Images
from study.data.sources import load_dataset
from study.errors import TrialError
from study.models.classifier import Classifier, build
from study.models.pretrained import load_pretrained
from study.models.state_dict import StateDict
from study.results.metrics import Evaluation, Progress
from study.training.loop import evaluate, move_to_device, summarise, train
from study.training.probe import compute_features, fit_probe

MODEL = "timm/tf_efficientnet_lite0"
IMAGE_SIZE, EPOCHS, VIEWS = 64, 5, 2
DEPTHS = (0, 1)
RATES = (1e-5, 5e-5, 2e-4, 1e-3, 5e-3, 2e-2, 1e-1)
BATCHES = (16, 64)
SCHEDULES = ("constant", "cosine")
PARTS_OF_EPOCH = (0.25, 0.5)
"""Fractions of the first epoch after which a trial is validated, too."""
FIELDS = ("unfreeze_depth", "lr", "batch_size", "lr_schedule")
COLUMNS = (*FIELDS, "epoch", "val_accuracy", "val_loss", "seconds", "test_accuracy")

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Images of one kind."""

    source: str
    """cifar10 or digits."""
    labels: tuple[int, ...]
    train: int
    """Number of training images."""
    validation: int
    augmentation: str = "flip"
    seed: int = 0


CIFAR10 = tuple(range(10))
TASKS = {
    "cifar10": Task("cifar10", CIFAR10, 400, 200),
    "digits": Task("digits", CIFAR10, 400, 200, augmentation="none"),
    "animals": Task("cifar10", (2, 3, 4, 5, 6, 7), 240, 150, seed=3),
    "vehicles": Task("cifar10", (0, 1, 8, 9), 200, 152),
    "small": Task("cifar10", CIFAR10, 200, 150, seed=1),
    "vehicles-again": Task("cifar10", (0, 1, 8, 9), 200, 152, seed=2),
}
"""Tasks by name; the last one is the one before, vehicles, with another seed of the images and of the training."""
MOST_TEST = 500
"""Largest number of test images."""


def main() -> None:
    """Train all recipes on tasks, and write a row for each validation; go on where an earlier call has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="folder with a tenth of CIFAR-10")
    parser.add_argument("--weights", required=True, help="directory with the network's weights")
    parser.add_argument("--out", type=Path, required=True, help="directory of a CSV file for each task")
    parser.add_argument("--store", type=Path, required=True, help="directory of the feature store")
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.tasks:
        task = TASKS[name]
        source = given.images if task.source == "cifar10" else task.source
        dataset = load_dataset(source, fraction=1.0, seed=0, image_size=IMAGE_SIZE, data_dir=given.store)
        pretrained = load_pretrained(MODEL, given.weights, classes=len(task.labels)).state
        store = FeatureStore(given.store, 4 * 10**9)
        record_task(Trainer(task, *draw(dataset, task), pretrained, store), given.out / f"{name}.csv")
    if all((given.out / f"{name}.csv").exists() for name in TASKS):
        pack(given.out, given.out / "curves.csv.gz")


def pack(directory: Path, file: Path) -> None:
    """Write the rows of all tasks into one compressed file."""
    rows = [
        {"task": name, **row} for name in TASKS for row in csv.DictReader((directory / f"{name}.csv").open(newline=""))
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, ("task", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    file.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def draw(dataset: Dataset, task: Task) -> tuple[Images, Images, Images]:
    """Return the task's training, validation and test images: the same number of each class, drawn by its seed."""
    random = np.random.default_rng(task.seed)
    each, held = task.train // len(task.labels), task.validation // len(task.labels)
    tested = MOST_TEST // len(task.labels)

    def take(images: Images, start: int, stop: int) -> Images:
        drawn = [random.permutation(np.flatnonzero(images.labels == label))[start:stop] for label in task.labels]
        taken = images.take(np.sort(np.concatenate(drawn)))
        return Images(taken.pixels, np.searchsorted(task.labels, taken.labels).astype(np.int64))

    both = take(dataset.train, 0, each + held)
    places = [np.flatnonzero(both.labels == label) for label in range(len(task.labels))]
    parts = (np.sort(np.concatenate([found[part] for found in places])) for part in (slice(each), slice(each, None)))
    training, validation = (both.take(part) for part in parts)
    return training, validation, take(dataset.test, 0, tested)


def record_task(trainer: "Trainer", out: Path) -> None:
    """Append the rows of the probe and of each recipe that the file does not hold yet."""
    rows = csv.DictReader(out.open()) if out.exists() else []
    known = {tuple(row[name] for name in FIELDS) for row in rows}
    for values in [("",) * len(FIELDS), *itertools.product(DEPTHS, RATES, BATCHES, SCHEDULES)]:
        if tuple(map(str, values)) in known:
            continue
        begun = time.perf_counter()
        fields = dict(zip(FIELDS, values, strict=True))
        found = list(trainer.fine_tune(fields) if values[-1] else trainer.probe())
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if not file.tell():
                writer.writeheader()
            writer.writerows({**fields, **row} for row in found)
        print(out.stem, *values, f"{time.perf_counter() - begun:.1f} s", flush=True)


@dataclass(frozen=True)
class Trainer:
    """Trains on the images of one task."""

    task: Task
    train: Images
    validation: Images
    test: Images
    pretrained: StateDict | None
    store: FeatureStore
    hardware = choose_hardware("fp32")

    def _recipe(self, fields: Row) -> Recipe:
        base = baseline_recipe(MODEL)
        fixed = {"image_size": IMAGE_SIZE, "epochs": EPOCHS, "views": VIEWS, "augmentation": self.task.augmentation}
        return replace(base, **{**fixed, **fields})

    def _build(self, depth: int) -> Classifier:
        classifier = build(
            MODEL,
            classes=len(self.task.labels),
            unfreeze_depth=depth,
            pretrained=self.pretrained,
            seed=self.task.seed,
        )
        move_to_device(classifier, self.hardware)
        return classifier

    def probe(self) -> Iterator[Row]:
        """Fit a linear probe, and yield its row, which stands at epoch 0."""
        recipe, classifier, classes = self._recipe({"unfreeze_depth": 0}), self._build(0), len(self.task.labels)
        started = time.perf_counter()
        features = [
            compute_features(classifier, recipe, part, self.hardware, self.store)
            for part in (self.train, self.validation, self.test)
        ]
        fitted = fit_probe(features[0], self.train.labels, features[1], self.validation.labels, classes=classes)
        seconds = time.perf_counter() - started
        held, tested = (
            summarise(fitted.logits(found), part.labels, classes=classes, started=started)
            for found, part in zip(features[1:], (self.validation, self.test), strict=True)
        )
        yield row(0, held, seconds, tested)

    def fine_tune(self, fields: Row) -> Iterator[Row]:
        """Train one recipe, and yield a row for each validation; one without accuracy says that the trial failed."""
        recipe, classes = self._recipe(fields), len(self.task.labels)
        classifier = self._build(recipe.unfreeze_depth)
        early: list[Row] = []
        due = [part * len(self.train) for part in PARTS_OF_EPOCH]
        started = time.perf_counter()

        def measure(images: Images) -> Evaluation:
            return evaluate(classifier, recipe, images, classes=classes, hardware=self.hardware, features=self.store)

        def watch(progress: Progress) -> None:
            if progress.epoch > 1 or not due or progress.images < due[0]:
                return
            seconds = time.perf_counter() - started
            early.append(row(round(progress.images / progress.of, 3), measure(self.validation), seconds))
            due[:] = [images for images in due if images > progress.images]
            classifier.set_training()

        results = train(
            classifier,
            recipe,
            self.train,
            classes=classes,
            seed=self.task.seed,
            hardware=self.hardware,
            validation=self.validation,
            watch=watch,
            features=self.store,
        )
        try:
            for result in results:
                yield from early
                early.clear()
                assert result.val_confusion is not None and result.val_loss is not None
                held = Evaluation(result.val_loss, result.val_confusion, [])
                last = result.epoch == recipe.epochs
                yield row(result.epoch, held, result.epoch_s, measure(self.test) if last else None)
        except TrialError:
            yield from early
            yield row(EPOCHS, None, 0.0)


def row(epoch: float, held: Evaluation | None, seconds: float, tested: Evaluation | None = None) -> Row:
    """Return a row: the epochs so far, the validation, the seconds of this epoch so far, and the test accuracy."""
    return {
        "epoch": epoch,
        "val_accuracy": f"{held.accuracy:.4f}" if held else "",
        "val_loss": f"{held.loss:.4f}" if held else "",
        "seconds": f"{seconds:.2f}",
        "test_accuracy": f"{tested.accuracy:.4f}" if tested else "",
    }


if __name__ == "__main__":
    main()
