"""Search recipes as a careful user of Ray Tune or of Optuna alone would, to be compared with ours in part 7.

Uses nothing else of this project: reads a task from one JSON file, and writes what it found to another.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

STAGES = (
    ("conv_stem", "bn1", "blocks.0"),
    ("blocks.1",),
    ("blocks.2",),
    ("blocks.3", "blocks.4"),
    ("blocks.5", "blocks.6", "conv_head", "bn2"),
)
"""Modules of EfficientNet-Lite0 at each resolution; unfreeze depth n trains the last n stages and the classifier."""

Part = tuple[Tensor, Tensor]
"""Images (n, 3, 32, 32) uint8 and labels (n,) int64."""


@dataclass(frozen=True)
class Task:
    """What to search, and how long."""

    images: str
    """Path of a .npz file with the arrays NAME_pixels and NAME_labels of the parts train, validation and test."""
    weights: str
    """Path of the network's pretrained weights."""
    classes: int
    image_size: int
    """Side of the network's input in pixels."""
    epochs: int
    trials: int
    """Largest number of trials."""
    seconds: float
    """Time of the search in seconds, without the start of the process."""
    seed: int
    bf16: bool
    """Whether the hardware computes faster with bf16."""
    first: dict[str, Any]
    """Configuration of the first trial."""


@dataclass(frozen=True)
class Outcome:
    """What a search found."""

    reports: list[tuple[float, float]]
    """Moment in seconds since 1970, and validation accuracy in [0, 1], of each epoch of each trial."""
    trials: int
    test_accuracy: float
    """Test accuracy in [0, 1] of the best configuration, trained anew on training and validation images."""


class Augmented(Dataset[tuple[Tensor, int]]):
    """Training images in memory, augmented one by one."""

    def __init__(self, part: Part) -> None:
        """Wrap images and labels."""
        self._images, self._labels = part
        self._augment = v2.Compose([v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an augmented image and its label."""
        return self._augment(self._images[index]), int(self._labels[index])


def build_network(task: Task, unfreeze_depth: int) -> nn.Module:
    """Build the pretrained network with a new head, and freeze all but the last stages."""
    overlay = {"file": task.weights}
    network: nn.Module = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=task.classes
    )
    for module in frozen_modules(network, unfreeze_depth):
        module.requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def frozen_modules(network: nn.Module, unfreeze_depth: int) -> list[nn.Module]:
    """Return the modules that are not trained."""
    stages = STAGES[: len(STAGES) - unfreeze_depth]
    return [network.get_submodule(name) for stage in stages for name in stage]


def fine_tune(task: Task, config: dict[str, Any], train: Part, held_out: Part) -> Iterator[float]:
    """Train a configuration, and yield the accuracy on the held-out images after each epoch."""
    torch.manual_seed(task.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_network(task, config["unfreeze_depth"]).to(device)
    frozen = frozen_modules(network, config["unfreeze_depth"])
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, config["lr"], fused=True)
    batches = DataLoader(Augmented(train), config["batch_size"], shuffle=True)
    wanted = resolve_model_data_config(network)
    preprocess = v2.Compose(  # a whole batch at once
        [
            v2.Resize(math.floor(task.image_size / wanted["crop_pct"]), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(task.image_size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(wanted["mean"], wanted["std"]),
        ]
    )

    def scores(images: Tensor) -> Tensor:
        inputs = preprocess(images.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=task.bf16):
            logits: Tensor = network(inputs)
        return logits.float()

    for _ in range(task.epochs):
        network.train()
        for module in frozen:
            module.eval()  # BatchNorm of frozen layers must not drift
        for images, labels in batches:
            loss = cross_entropy(scores(images), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        network.eval()
        with torch.inference_mode():
            predictions = torch.cat([scores(images).argmax(1).cpu() for images in held_out[0].split(256)])
        yield float((predictions == held_out[1]).double().mean())  # a float's 0.72 would be above ours


def load_parts(task: Task) -> dict[str, Part]:
    """Read the images, once for all trials."""
    with np.load(task.images) as arrays:
        return {
            name: (torch.from_numpy(arrays[f"{name}_pixels"]), torch.from_numpy(arrays[f"{name}_labels"]))
            for name in ("train", "validation", "test")
        }


def search_with_ray(task: Task) -> Outcome:
    """Search with Ray Tune's OptunaSearch and ASHAScheduler; trials share one process."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    ray.init("local", include_dashboard=False, log_to_driver=False)  # not a Ray that runs here already
    parts = load_parts(task)

    def trainable(config: dict[str, Any], train: Part, validation: Part) -> None:
        for accuracy in fine_tune(task, config, train, validation):
            tune.report({"val_accuracy": accuracy, "moment": time.time()})

    with tempfile.TemporaryDirectory() as storage:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(trainable, train=parts["train"], validation=parts["validation"]),
                {"cpu": os.cpu_count() or 1, "gpu": torch.cuda.device_count()},
            ),
            param_space={
                "unfreeze_depth": tune.randint(0, 4),  # the upper bounds of randint and lograndint are exclusive
                "lr": tune.loguniform(1e-5, 1e-2),
                "batch_size": tune.lograndint(16, 257),
            },
            tune_config=tune.TuneConfig(
                metric="val_accuracy",
                mode="max",
                search_alg=OptunaSearch(seed=task.seed, points_to_evaluate=[task.first]),
                scheduler=ASHAScheduler(max_t=task.epochs, grace_period=1, reduction_factor=2),
                num_samples=task.trials,
                max_concurrent_trials=1,
                time_budget_s=task.seconds,
                reuse_actors=True,  # else each trial would start a process and import torch
            ),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        found = [results[number].metrics_dataframe for number in range(len(results))]
        reports = [
            (float(moment), float(accuracy))
            for frame in found
            if frame is not None and "moment" in frame  # else the time was over before the trial's first epoch
            for moment, accuracy in zip(frame["moment"], frame["val_accuracy"], strict=True)
        ]
        best = results.get_best_result(scope="all").config
    ray.shutdown()
    assert best is not None
    return Outcome(sorted(reports), len(results), score_best(task, best, parts))


def search_with_optuna(task: Task) -> Outcome:
    """Search with Optuna's TPE and successive halving in this process."""
    parts = load_parts(task)
    reports: list[tuple[float, float]] = []
    started = time.monotonic()

    def objective(trial: optuna.Trial) -> float:
        config = {
            "unfreeze_depth": trial.suggest_int("unfreeze_depth", 0, 3),
            "lr": trial.suggest_float("lr", 1e-5, 1e-2, log=True),
            "batch_size": trial.suggest_int("batch_size", 16, 256, log=True),
        }
        accuracy = 0.0
        for epoch, accuracy in enumerate(fine_tune(task, config, parts["train"], parts["validation"]), start=1):
            reports.append((time.time(), accuracy))
            trial.report(accuracy, epoch)
            if trial.should_prune() or time.monotonic() - started > task.seconds:
                raise optuna.TrialPruned
        return accuracy

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=task.seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    )
    study.enqueue_trial(task.first)
    study.optimize(objective, n_trials=task.trials, timeout=task.seconds)
    best = max(study.trials, key=lambda trial: max(trial.intermediate_values.values(), default=0.0))
    return Outcome(reports, len(study.trials), score_best(task, best.params, parts))


def score_best(task: Task, config: dict[str, Any], parts: dict[str, Part]) -> float:
    """Train the best configuration on training and validation images, and return its test accuracy."""
    (images, labels), (held_images, held_labels) = parts["train"], parts["validation"]
    everything = torch.cat([images, held_images]), torch.cat([labels, held_labels])
    *_, accuracy = fine_tune(task, config, everything, parts["test"])
    return accuracy


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the task, search, and write the outcome.

    Args:
        arguments: ray or optuna, the path of the task and the path of the outcome; None for those of the process.
    """
    library, task, outcome = sys.argv[1:] if arguments is None else arguments
    search = {"ray": search_with_ray, "optuna": search_with_optuna}[library]
    found = search(Task(**json.loads(Path(task).read_text())))
    Path(outcome).write_text(json.dumps(asdict(found)))
