"""Fine-tune a classifier by a recipe, one result an epoch, and evaluate it.

Knows nothing of trials, studies, Ray, Optuna or MLflow: images and a recipe in, numbers out.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from study.checkpoint import Checkpoint
from study.config import Recipe
from study.data import Images
from study.errors import TrialError
from study.features import autocast, epoch_outputs, rebatch
from study.models import Classifier
from study.seeding import derive_seed
from study.store import FeatureStore


@dataclass(frozen=True)
class Hardware:
    """Where a trial runs and at which precision."""

    device: torch.device
    precision: str
    """bf16 (autocast, channels-last) or fp32."""


@dataclass(frozen=True)
class Evaluation:
    """What a classifier made of a set of images, in plain values."""

    loss: float
    """Mean cross-entropy, without label smoothing."""
    confusion: list[list[int]]
    """Counts (classes, classes): row = true class, column = predicted class."""
    predictions: list[int]
    """The predicted class of each image, in the set's order."""
    seconds: float = field(default=0.0, compare=False)
    """That it took; two evaluations are equal whatever they took."""

    @property
    def accuracy(self) -> float:
        """The share of images whose class was predicted, in [0, 1]."""
        return accuracy(self.confusion)


@dataclass(frozen=True)
class EpochResult:
    """One epoch of one trial, in plain values."""

    epoch: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's images, as they were trained on."""
    epoch_s: float
    """Seconds of training, validation not included."""
    images_per_s: float
    """Training images over `epoch_s`."""
    val_loss: float | None = None
    """None where no validation images are held out, like the confusion."""
    val_confusion: list[list[int]] | None = None
    features: dict[str, int] | None = None
    """Images, those of validation included, whose prefix outputs were 'read' from the store, 'stored' there when they
    had been computed, only 'computed', since storing them would not pay, or 'unstored', since the store does not work;
    None without a store."""
    train_accuracy: float | None = None
    """The share of the epoch's images that were classified rightly as they were trained on, in [0, 1]; None in older
    records."""
    val_s: float = field(default=0.0, compare=False)
    """Seconds of validation after the epoch; two epochs are equal whatever it took."""
    store_failure: str | None = None
    """Why the store does not work; None where it does, or where there is none."""

    @property
    def val_accuracy(self) -> float | None:
        """The share of validation images whose class was predicted, in [0, 1]."""
        return None if self.val_confusion is None else accuracy(self.val_confusion)


def accuracy(confusion: list[list[int]]) -> float:
    """Return the diagonal's share of all counts, in [0, 1]."""
    counts = np.asarray(confusion)
    return float(np.trace(counts) / counts.sum())


@dataclass(frozen=True)
class Progress:
    """How far an epoch is, for whoever watches."""

    epoch: int
    images: int
    """Done in this epoch."""
    of: int
    images_per_s: float


def choose_hardware(precision: str) -> Hardware:
    """Take the GPU that this process may use, else the CPU; 'auto' is bf16 where the hardware gains from it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":  # same seed, same numbers; where CUDA knows no repeatable way, torch warns
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nor is memory cleared that nobody reads before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch types it so
    if precision == "auto":
        precision = "bf16" if _gains_from_bf16(device) else "fp32"
    return Hardware(device, precision)


def _gains_from_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's batches; a last batch of one image joins the batch before it.

    BatchNorm in training mode has no variance over a single value.
    """
    sizes = [batch_size] * (images // batch_size)
    if rest := images % batch_size:
        sizes.append(rest)
    if len(sizes) > 1 and sizes[-1] == 1 < batch_size:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def epoch_order(images: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order (images,) int64 in which an epoch goes through the images; the batches are cut from it."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))


def build_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the recipe's optimizer; fused, which gives the same steps in fewer passes over memory."""
    match recipe.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        case "adamw":  # Loshchilov & Hutter, arXiv:1711.05101
            return torch.optim.AdamW(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        case _:
            return torch.optim.SGD(
                parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
            )


def build_lr_schedule(
    recipe: Recipe, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the recipe's schedule over `steps` optimizer steps, the whole trial."""
    match recipe.lr_schedule:
        case "cosine":  # to zero, without restarts: arXiv:1608.03983
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        case "one-cycle":  # arXiv:1708.07120, torch's proportions
            return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=steps)
        case _:
            return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def train(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    *,
    classes: int,
    seed: int,
    hardware: Hardware,
    validation: Images | None = None,
    watch: Callable[[Progress], None] | None = None,
    features: FeatureStore | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[EpochResult]:
    """Fine-tune `classifier` in place and yield one result an epoch.

    Everything random is a function of (seed, purpose, epoch): the order and the augmentation of an epoch are the
    same for every recipe. With `features`, the prefix's outputs are shared with other trials through that store; the
    results are the same. With `checkpoint`, training goes on after the epoch that was saved last, as if it had never
    stopped; an epoch is saved only after its result was taken.

    Raises:
        TrialError: the loss of an epoch, or of its validation, is not finite.
    """
    device = hardware.device
    classifier.network.to(device).to(memory_format=torch.channels_last)
    parameters = [parameter for parameter in classifier.suffix.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(recipe, parameters)
    sizes = batch_sizes(len(images), recipe.batch_size)
    schedule = build_lr_schedule(recipe, optimizer, len(sizes) * recipe.epochs)
    labels = torch.from_numpy(images.labels)

    def begin(epoch: int) -> tuple[Tensor, Iterator[Tensor], float]:
        """Return an epoch's targets, its outputs, which the store reads ahead from now on, and the seconds it took."""
        started = time.perf_counter()
        order = epoch_order(len(images), seed=seed, epoch=epoch)
        chunks = epoch_outputs(
            classifier,
            recipe,
            images,
            order,
            augmentation=(seed, epoch),
            device=device,
            precision=hardware.precision,
            store=features,
        )
        return labels[order].to(device), chunks, time.perf_counter() - started

    done_epochs = checkpoint.restore(classifier, optimizer, schedule) if checkpoint else 0
    tally = Counter(features.tally) if features else None
    upcoming = begin(done_epochs + 1)
    for epoch in range(done_epochs + 1, recipe.epochs + 1):
        targets, chunks, begin_s = upcoming
        started = time.perf_counter() - begin_s
        torch.manual_seed(derive_seed(seed, "dropout", epoch))
        classifier.set_training()
        total, right = torch.zeros((), device=device), torch.zeros((), device=device, dtype=torch.long)
        done = 0
        for batch in rebatch(chunks, sizes):
            target = targets[done : done + len(batch)]
            with autocast(device, hardware.precision):
                logits = classifier.suffix(batch).float()
                loss = cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(batch)
            right += (logits.detach().argmax(dim=1) == target).sum()
            done += len(batch)
            if watch:
                watch(Progress(epoch, done, len(images), done / (time.perf_counter() - started)))
        train_loss = total.item() / len(images)  # waits for the device, so that the seconds are all there
        epoch_s = time.perf_counter() - started
        check_finite("train_loss", train_loss, epoch)
        result = EpochResult(
            epoch, train_loss, epoch_s, len(images) / epoch_s, train_accuracy=right.item() / len(images)
        )
        if validation is not None:
            held_out = evaluate(classifier, recipe, validation, classes=classes, hardware=hardware, features=features)
            check_finite("val_loss", held_out.loss, epoch)
            result = dataclasses.replace(
                result, val_loss=held_out.loss, val_confusion=held_out.confusion, val_s=held_out.seconds
            )
        if features and tally is not None:
            sources: dict[str, int] = dict((features.tally - tally).items())
            result = dataclasses.replace(result, features=sources, store_failure=features.failure)
            tally = Counter(features.tally)
        if epoch < recipe.epochs:
            upcoming = begin(epoch + 1)  # while the result is taken
        yield result
        if checkpoint and epoch < recipe.epochs:
            checkpoint.save_if_due(epoch, classifier, optimizer, schedule)


def check_finite(name: str, loss: float, epoch: int) -> None:
    """Let a finite loss pass.

    Raises:
        TrialError: it is not.
    """
    if not math.isfinite(loss):
        raise TrialError(f"{name}: must stay finite, but became {loss} in epoch {epoch}. Lower lr.")


def evaluate(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    *,
    classes: int,
    hardware: Hardware,
    features: FeatureStore | None = None,
) -> Evaluation:
    """Predict every image, not augmented, in the given order; the prefix's outputs may come from a store."""
    started = time.perf_counter()
    chunks = epoch_outputs(
        classifier,
        recipe,
        images,
        torch.arange(len(images)),
        augmentation=None,
        device=hardware.device,
        precision=hardware.precision,
        store=features,
    )
    classifier.set_evaluation()
    logits: list[Tensor] = []
    with torch.inference_mode(), autocast(hardware.device, hardware.precision):
        for chunk in chunks:
            logits.append(classifier.suffix(chunk))
    return summarise(torch.cat(logits), images.labels, classes=classes, started=started)


def summarise(scores: Tensor, labels: np.ndarray, *, classes: int, started: float) -> Evaluation:
    """Turn scores (n, classes), before softmax, and true labels (n,) into an Evaluation begun at that perf_counter."""
    scores = scores.float().cpu()  # waits for the device, so that the seconds are all there
    predictions = scores.argmax(dim=1).numpy()
    cells = np.bincount(labels * classes + predictions, minlength=classes**2)
    return Evaluation(
        loss=cross_entropy(scores, torch.from_numpy(labels)).item(),
        confusion=cells.reshape(classes, classes).tolist(),
        predictions=predictions.tolist(),
        seconds=time.perf_counter() - started,
    )
