"""Measure part 7 of the benchmark: how soon a search finds a good recipe, on real images with pretrained weights.

Runs each side as its user would, in a process of its own, and compares the best validation accuracy so far by the
seconds since that process began.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from study.bench.stock import Outcome, Task
from study.bench.training import Figure
from study.charts import figures
from study.compute.hardware import Hardware
from study.config.load_toml import baseline_recipe
from study.data.sources import load_dataset
from study.data.splits import split_validation
from study.results.record import Record
from study.tuning.prepare import VALIDATION_FRACTION
from study.verdict.rerank import find_winner

MODEL = "timm/tf_efficientnet_lite0"
SHARED = Path(__file__).parents[3] / "shared"
WEIGHTS, IMAGES = "weights/tf_efficientnet_lite0.safetensors", "cifar10-tenth"
"""Files of the directory `shared` beside the checkout."""
RAY, OPTUNA, EMPTY, SECOND = "stock Ray Tune", "Optuna alone", "ours, empty cache", "ours, second study"
SIDES = (RAY, OPTUNA, EMPTY, SECOND)
MOMENTS = (15, 30, 60)
"""Seconds after which the sides' accuracies are compared."""
START_S = 60
"""Seconds after which ours should never be below stock Ray Tune."""
STOCK_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""Environment variables of the stock sides: no telemetry, and trials as urgent as their parent, as ours are."""
SPACE = """\
model = "{model}"
[space]
unfreeze_depth = {{ type = "int", low = 0, high = 3 }}
lr = {{ type = "float", low = 1e-5, high = 1e-2, log = true }}
batch_size = {{ type = "int", low = 16, high = 256, log = true }}
[budget]
trials = {trials}
time = "{seconds}s"
[pruner]
name = "asha"
min_epochs = 1
reduction_factor = 2
"""
"""The search space of all sides; `stock.py` repeats it in the words of Ray Tune and of Optuna."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    fraction: float
    """Fraction of the training and of the test images, in (0, 1]."""
    image_size: int
    """Side of the network's input in pixels."""
    epochs: int
    trials: int
    """Largest number of trials of a search."""
    seconds: int
    """Time of a search in seconds; what a side finds later does not count."""
    seeds: tuple[int, ...]
    """Seeds of the subset, the validation split, the training and the sampler; all sides run once with each."""


QUICK = Extent(fraction=0.2, image_size=96, epochs=5, trials=30, seconds=120, seeds=(0,))
FULL = replace(QUICK, seeds=(0, 1, 2))


@dataclass(frozen=True)
class Trajectory:
    """What a side found, and when."""

    reports: tuple[tuple[float, float], ...]
    """Seconds since its process began, and validation accuracy in [0, 1], of each epoch of each trial, by time."""
    trials: int
    """Number of trials that began."""
    test_accuracy: float
    """Test accuracy in [0, 1] of the recipe that the side chose."""

    def best_at(self, seconds: float) -> float:
        """Return the best validation accuracy until then; 0 before the first."""
        return max((accuracy for moment, accuracy in self.reports if moment <= seconds), default=0.0)

    def seconds_to(self, accuracy: float) -> float:
        """Return the seconds until the first epoch with that validation accuracy; infinity if there is none."""
        return next((moment for moment, reached in self.reports if reached >= accuracy), math.inf)


def find_lack(shared: Path = SHARED) -> str | None:
    """Return which files the part needs and does not find; None if all are there."""
    lacking = [name for name in (WEIGHTS, IMAGES) if not (shared / name).exists()]
    return f"needs {' and '.join(lacking)} in {shared}" if lacking else None


def measure_answer(
    folder: Path, extent: Extent, hardware: Hardware, *, shared: Path = SHARED, drawing: Path | None = None
) -> list[Figure]:
    """Measure part 7; the sides begin in another order with each seed.

    Args:
        folder: directory for all files.
        extent: how much is measured.
        hardware: device and precision; the stock sides compute in bf16 where ours does.
        shared: directory with the weights and the images.
        drawing: PNG file for the sides' accuracies by time; None for no file.
    """
    found: dict[str, list[Trajectory]] = {side: [] for side in SIDES}
    for turn, seed in enumerate(extent.seeds):
        room = Path(tempfile.mkdtemp(dir=folder))
        task = write_task(room, extent, seed, hardware, shared)
        groups = [(RAY,), (OPTUNA,), (EMPTY, SECOND)]  # the second study reads what the first has stored
        first = turn % len(groups)
        for side in (side for group in groups[first:] + groups[:first] for side in group):
            print(f"  seed {seed}, {side} …", file=sys.stderr, flush=True)
            if side in (RAY, OPTUNA):
                found[side].append(run_stock("ray" if side == RAY else "optuna", room, task))
            else:
                name = "first" if side == EMPTY else "second"
                found[side].append(run_ours(name, room, extent, seed, shared))
    if drawing:
        drawing.write_bytes(draw(found, extent))
    return compare(found, extent)


def write_task(room: Path, extent: Extent, seed: int, hardware: Hardware, shared: Path) -> Task:
    """Write the search space of ours, and the images as ours splits them for the stock sides; return their task."""
    dataset = load_dataset(
        str(shared / IMAGES), fraction=extent.fraction, seed=seed, image_size=extent.image_size, data_dir=room
    )
    train, validation = split_validation(dataset, fraction=VALIDATION_FRACTION, seed=seed)
    arrays: dict[str, Any] = {}
    for name, images in (("train", train), ("validation", validation), ("test", dataset.test)):
        arrays |= {f"{name}_pixels": np.asarray(images.pixels[:]), f"{name}_labels": images.labels}
    np.savez(room / "images.npz", **arrays)
    values = {name: getattr(extent, name) for name in ("image_size", "epochs", "trials", "seconds")}
    (room / "space.toml").write_text(SPACE.format(model=MODEL, trials=extent.trials, seconds=extent.seconds))
    baseline = baseline_recipe(MODEL)
    return Task(
        images=str(room / "images.npz"),
        weights=str(shared / WEIGHTS),
        classes=len(dataset.classes),
        seed=seed,
        bf16=hardware.precision == "bf16",
        first={name: getattr(baseline, name) for name in ("unfreeze_depth", "lr", "batch_size")},
        **values,
    )


def run_stock(library: str, room: Path, task: Task) -> Trajectory:
    """Run the search of `stock.py` with ray or optuna, and return what it found in time."""
    asked, answered = room / f"{library}.task.json", room / f"{library}.json"
    asked.write_text(json.dumps(asdict(task)))
    # Not as a script, whose functions Ray could not find by name in its processes.
    command = [sys.executable, "-c", "from study.bench.stock import main; main()", library, str(asked), str(answered)]
    started = _run(command, room, STOCK_ENVIRONMENT)
    outcome = Outcome(**json.loads(answered.read_text()))
    return in_time(outcome.reports, started, task.seconds, outcome.trials, outcome.test_accuracy)


def run_ours(name: str, room: Path, extent: Extent, seed: int, shared: Path) -> Trajectory:
    """Run our search as a user does, with the cache of `room`, and return what its record says was found in time."""
    command = [sys.executable, "-m", "study.run", "--search", "space.toml", "--name", name, "--seed", str(seed)]
    command += ["--data", str(shared / IMAGES), "--fraction", str(extent.fraction), "--weights", str(shared / WEIGHTS)]
    command += ["--image-size", str(extent.image_size), "--epochs", str(extent.epochs)]  # of the baseline's trial, too
    command += ["--repeats", "1", "--rerank", "0"]  # the stock sides test one refit of one recipe, too
    command += ["--concurrent", "1"]  # the stock sides run one trial at a time, too
    started = _run(command, room, {"XDG_CACHE_HOME": str(room / "cache")})
    record = Record.read(room / "mlruns" / "studies" / name)
    reports = []
    for trial in record.trials():
        accuracies = [epoch.val_accuracy or 0.0 for epoch in trial.epochs]
        reports += [(ms / 1000, accuracy) for ms, accuracy in zip(trial.epoch_ends_ms, accuracies, strict=True)]
    winner = find_winner(record)
    assert winner, "a trial of the benchmark must have a result"
    (test,) = [trial.test for trial in record.finals() if trial.test and trial.plan.recipe == winner.plan.recipe]
    begun = sum(trial.state != "waiting" for trial in record.trials())
    return in_time(reports, started, extent.seconds, begun, test.metrics["accuracy"])


def _run(command: Sequence[str], room: Path, environment: Mapping[str, str]) -> float:
    """Run a command in `room`, and return the moment of its start in seconds since 1970."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    started = time.time()
    done = subprocess.run(
        command, cwd=room, env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    return started


def in_time(
    reports: Sequence[tuple[float, float]], started: float, seconds: float, trials: int, test_accuracy: float
) -> Trajectory:
    """Return the trajectory of a process that began at `started`, without what it found after `seconds`."""
    passed = sorted((moment - started, accuracy) for moment, accuracy in reports)
    return Trajectory(tuple(report for report in passed if report[0] <= seconds), trials, test_accuracy)


def compare(found: Mapping[str, Sequence[Trajectory]], extent: Extent) -> list[Figure]:
    """Return the part's figures, with one value for each seed."""
    reached = [run.best_at(extent.seconds) for run in found[RAY]]
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    rows["seconds to the best of stock Ray Tune", "s"] = {
        side: [run.seconds_to(best) for run, best in zip(runs, reached, strict=True)] for side, runs in found.items()
    }
    for moment in (*(moment for moment in MOMENTS if moment < extent.seconds), extent.seconds):
        rows[f"best validation accuracy after {moment} s", "%"] = {
            side: [100 * run.best_at(moment) for run in runs] for side, runs in found.items()
        }
    rows[f"most below stock Ray Tune after {START_S} s", "points"] = {
        side: [100 * most_below(run, other) for run, other in zip(found[side], found[RAY], strict=True)]
        for side in (OPTUNA, EMPTY, SECOND)
    }
    rows["test accuracy of the choice", "%"] = {
        side: [100 * run.test_accuracy for run in runs] for side, runs in found.items()
    }
    rows["trials begun", "trials"] = {side: [run.trials for run in runs] for side, runs in found.items()}
    return [
        Figure(7, f"{what}, {side}", unit, values)
        for (what, unit), sides in rows.items()
        for side, values in sides.items()
    ]


def most_below(run: Trajectory, other: Trajectory) -> float:
    """Return by how much a side's best accuracy is at most below another's after the first minute; 0 if it never is."""
    moments = [START_S, *(moment for moment, _ in other.reports if moment > START_S)]
    return max(0.0, *(other.best_at(moment) - run.best_at(moment) for moment in moments))


def draw(found: Mapping[str, Sequence[Trajectory]], extent: Extent) -> bytes:
    """Draw the best validation accuracy by time, one line for each side and seed, as a PNG file."""
    moments = {side: [[moment for moment, _ in run.reports] for run in runs] for side, runs in found.items()}
    curves = {
        side: [
            [(moment, run.best_at(moment)) for moment in (0.0, *passed, float(extent.seconds))]
            for run, passed in zip(runs, moments[side], strict=True)
        ]
        for side, runs in found.items()
    }
    return figures.png(figures.accuracy_by_time(curves, f"{MODEL} at {extent.image_size} px: best recipe so far"))
