"""Run a study from its configuration to its result: data, weights, Ray, record, tracking, in one straight line."""

import csv
import io
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from study import figures, notebook
from study.augment import augment, draw
from study.cluster import Resources, ray_session, share_resources
from study.comparison import Row, compare
from study.config import Plan, StudyConfig
from study.data import Dataset, fingerprint, load_dataset
from study.errors import RecordError
from study.models import Pretrained, load_pretrained, preprocessing, to_colours
from study.record import Record, TrialRecord
from study.search import Listener, run_trials
from study.tracking import Tracker, connect, local_uri
from study.trainable import Inputs
from study.training import epoch_order

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "scikit-learn", "numpy")


class Observer(Listener, Protocol):
    """Whoever watches a study: besides its trials, how it begins."""

    def on_data(self, dataset: Dataset, manifest: Mapping[str, Any]) -> None:
        """The images are there."""

    def on_weights(self, model: str, pretrained: Pretrained) -> None:
        """A model's weights are there."""

    def on_resources(self, resources: Resources) -> None:
        """Ray is there."""

    def on_record(self, record: Record) -> None:
        """The study has begun."""


@dataclass(frozen=True)
class StudyResult:
    """A study that has ended."""

    directory: Path
    tracking_uri: str
    trials: Sequence[TrialRecord]
    rows: Sequence[Row]
    """The tested trials side by side."""
    unsent: int
    """Runs that MLflow could not be given; the record has them."""


def run_study(config: StudyConfig, observer: Observer) -> StudyResult:
    """Run all trials of a study, record them, and project them into MLflow.

    Nothing is written below `config.mlruns/studies` before data, weights, the tracking store and Ray are there.

    Raises:
        StudyError: the study cannot begin.
        KeyboardInterrupt: the user stopped it; its runs end as KILLED.
    """
    uri = config.tracking_uri or local_uri(config.mlruns)
    _make_writable(config.mlruns)
    client = connect(uri, verbose=config.verbose)
    dataset = load_dataset(
        config.data,
        fraction=config.fraction,
        seed=config.seed,
        image_size=max(recipe.image_size for recipe in config.recipes),
        data_dir=config.data_dir,
    )
    observer.on_data(dataset, _describe_data(dataset))
    pretrained: dict[str, Pretrained] = {}
    for recipe in config.recipes:
        pretrained[recipe.model] = load_pretrained(recipe.model, config.weights, classes=len(dataset.classes))
        observer.on_weights(recipe.model, pretrained[recipe.model])

    with ray_session(config.ray_address, verbose=config.verbose) as scratch:
        resources = share_resources(
            config.cpus_per_trial, config.gpus_per_trial, config.concurrent, trials=len(config.recipes)
        )
        observer.on_resources(resources)
        record = Record(config.mlruns / "studies" / config.name, config.name, _manifest(config, dataset, pretrained))
        stage = "as-written" if config.as_written else "baseline"
        record.add((stage, recipe, config.seed) for recipe in config.recipes)
        observer.on_record(record)
        tracker = Tracker(
            client,
            record,
            artifacts=config.mlruns / "artifacts" if uri.startswith("sqlite:") else None,
            samples=lru_cache(lambda plan: _draw_samples(plan, dataset)),
        )
        inputs = Inputs(
            train=dataset.train,
            validation=None,
            test=dataset.test,
            classes=len(dataset.classes),
            pretrained={model: _arrays(found) for model, found in pretrained.items()},
            precision=config.precision,
        )
        try:
            run_trials(
                record,
                inputs,
                [observer, tracker],
                cpus_per_trial=resources.cpus_per_trial,
                gpus_per_trial=resources.gpus_per_trial,
                concurrent=resources.concurrent,
                scratch=scratch,
            )
        except BaseException as error:
            tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {}, {})
            raise
        trials = record.trials()
        rows = compare(trials, dataset.classes)
        status = "FINISHED" if rows else "FAILED"
        unsent = tracker.finish(status, _comparison_files(rows), {})
        record.close()
    return StudyResult(record.directory, uri, trials, rows, unsent)


def _make_writable(mlruns: Path) -> None:
    """Make the directory of all runs, and make sure of it before anything slow."""
    try:
        mlruns.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=mlruns):
            pass
    except OSError as error:
        raise RecordError(f"{mlruns}: must be writable, but {error.strerror}. Run where you may write.") from None


def _describe_data(dataset: Dataset) -> dict[str, Any]:
    return {
        "data": dataset.name,
        "classes": list(dataset.classes),
        "fraction": dataset.fraction,
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "data_fingerprint": fingerprint(dataset.train, dataset.test),
        "split_fingerprint": fingerprint(dataset.train),
    }


def _manifest(config: StudyConfig, dataset: Dataset, pretrained: Mapping[str, Pretrained]) -> dict[str, Any]:
    return {
        "kind": "baseline",
        "source": config.data,
        **_describe_data(dataset),
        "seed": config.seed,
        "weights": config.weights,
        "weights_digests": {model: found.digest for model, found in pretrained.items()},
        "precision": config.precision,
        "versions": {package: version(package) for package in PACKAGES},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that the command was run in, if any."""
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()


def _arrays(pretrained: Pretrained) -> dict[str, np.ndarray] | None:
    if pretrained.state is None:
        return None
    return {name: tensor.numpy() for name, tensor in pretrained.state.items()}


def _draw_samples(plan: Plan, dataset: Dataset) -> bytes:
    """Draw the first training batch as the network sees it, in true colours."""
    recipe = plan.recipe
    if plan.stage == "as-written":
        inputs, labels = notebook.first_batch(recipe, dataset.train, seed=plan.seed)
    else:
        order = epoch_order(len(dataset.train), seed=plan.seed, epoch=1)[: recipe.batch_size]
        chosen = dataset.train.take(order.numpy())
        pixels, labels = torch.from_numpy(chosen.pixels), torch.from_numpy(chosen.labels)
        if recipe.augmentation == "autoaugment":
            pixels = augment(pixels, draw(len(dataset.train), seed=plan.seed, epoch=1).take(order))
        inputs = preprocessing(recipe.model, recipe.image_size)(pixels)
    colours = to_colours(recipe.model, inputs).numpy()
    return figures.png(figures.samples(colours, labels.numpy(), dataset.classes, f"{recipe.model}: a training batch"))


def _comparison_files(rows: Sequence[Row]) -> dict[str, bytes]:
    """Return the comparison as a table and a plot, by file name."""
    if not rows:
        return {}
    table = io.StringIO()
    columns = ["model", "trainable_parameters", "seconds", "images_per_s", "test_accuracy", "hardest_pair"]
    writer = csv.writer(table)
    writer.writerow(
        [*columns, *(f"loss_epoch_{epoch}" for epoch in range(1, max(len(row.losses) for row in rows) + 1))]
    )
    writer.writerows([*(getattr(row, column) for column in columns), *row.losses] for row in rows)
    figure = figures.comparison(
        [row.model for row in rows],
        {row.model: row.losses for row in rows},
        {row.model: row.test_accuracy for row in rows},
        {row.model: row.images_per_s for row in rows},
    )
    return {"comparison.csv": table.getvalue().encode(), "comparison.png": figures.png(figure)}
