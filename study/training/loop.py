"""Fine-tune a classifier by a recipe, yield one result per epoch, and evaluate the classifier.

This module does not know trials, studies, Ray, Optuna or MLflow. It takes images and a recipe and returns numbers.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from study.augmentation.mixing import Mixing, Targets, build_targets, draw_mixing
from study.compute.depthwise import use_fp32_gradients
from study.compute.feature_store import FeatureStore, Source
from study.compute.features import CHUNK, classify, epoch_outputs, rebatch
from study.compute.hardware import Hardware, make_deterministic
from study.config.recipe import Recipe
from study.data.images import Images
from study.errors import TrialError
from study.models.classifier import Classifier
from study.results.metrics import EpochResult, Evaluation, Progress
from study.seeding import derive_seed
from study.training.checkpoint import Checkpoint
from study.training.passes import Passes, PlainPass, graphs_wanted
from study.training.probe import begin_with_probe
from study.training.updates import Updates, build_updates


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """Return the sizes of an epoch's batches. A last batch of one image is merged into the batch before it.

    BatchNorm in training mode cannot compute a variance from a single value.
    """
    sizes = [batch_size] * (images // batch_size)
    if rest := images % batch_size:
        sizes.append(rest)
    if len(sizes) > 1 and sizes[-1] == 1 < batch_size:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def epoch_order(images: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order (images,) int64 of an epoch's images; each batch is a consecutive part of it."""
    return torch.randperm(images, generator=torch.Generator().manual_seed(derive_seed(seed, "order", epoch)))


def epoch_mixing(recipe: Recipe, order: Tensor, *, seed: int, epoch: int) -> Mixing | None:
    """Return how the images of an epoch are mixed by the recipe; None if they are not."""
    return draw_mixing(
        order,
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        side=recipe.image_size,
        group=CHUNK,
        seed=seed,
        epoch=epoch,
    )


def move_to_device(classifier: Classifier, hardware: Hardware) -> None:
    """Prepare a classifier for a trial: move it to the device, where its results repeat."""
    classifier.move_to(hardware.device)
    make_deterministic(classifier.network, hardware.device)
    use_fp32_gradients(classifier.network, hardware)


def class_weights(recipe: Recipe, labels: np.ndarray, classes: int) -> Tensor | None:
    """Return the weight (classes,) float32 of each class in the training loss; None if all count the same.

    Balanced weights are n / (classes · images of the class), as scikit-learn's `compute_class_weight` has them, so the
    mean weight of an image is 1.
    """
    if recipe.class_weights == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy((len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32))


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
    """Fine-tune `classifier` in place and yield one result per epoch.

    Every random choice is a function of (seed, purpose, epoch), so the order and the augmentation of an epoch are the
    same for all recipes. With `features`, trials share the prefix's outputs through that store; the results stay the
    same. With `checkpoint`, training continues after the last saved epoch, as if training had never stopped. An epoch
    is saved only after the caller has taken its result. With averaged weights, those are validated, and left in
    `classifier` after the last epoch; the training loss and accuracy are those of the weights that are trained.

    Raises:
        TrialError: a training or validation loss is not finite.
    """
    move_to_device(classifier, hardware)
    sizes = batch_sizes(len(images), recipe.batch_size)
    updates = build_updates(classifier, recipe, len(sizes) * recipe.epochs)
    weights = class_weights(recipe, images.labels, classes)
    weights = None if weights is None else weights.to(hardware.device)
    done_epochs = checkpoint.restore(classifier, updates) if checkpoint else 0
    if recipe.head_init == "probe" and not done_epochs:
        begin_with_probe(classifier, recipe, images, classes=classes, seed=seed, hardware=hardware, store=features)
        updates = build_updates(classifier, recipe, len(sizes) * recipe.epochs)  # an average begins with the probe too
    tally = Counter(features.tally) if features else Counter()
    passes = Passes(
        PlainPass(classifier.suffix, weights, recipe.label_smoothing, hardware), graphs=graphs_wanted(hardware.device)
    )
    begin = partial(_begin_epoch, classifier, recipe, images, seed=seed, hardware=hardware, features=features)
    upcoming = begin(done_epochs + 1)
    for epoch in range(done_epochs + 1, recipe.epochs + 1):
        targets, chunks, begin_s = upcoming
        started = time.perf_counter() - begin_s
        _seed_dropout(hardware.device, derive_seed(seed, "dropout", epoch))
        classifier.set_training()

        def on_batch(done: int, epoch: int = epoch, started: float = started) -> None:
            if watch:
                watch(Progress(epoch, done, len(images), done / (time.perf_counter() - started)))

        train_loss, train_accuracy = _train_epoch(
            rebatch(chunks, sizes), targets, passes, updates, hardware.device, on_batch
        )
        epoch_s = time.perf_counter() - started
        check_finite("train_loss", train_loss, epoch)
        result = EpochResult(
            epoch,
            train_loss,
            epoch_s,
            len(images) / epoch_s,
            train_accuracy=train_accuracy,
            graph_failure=passes.failure,
        )
        if updates.average:
            updates.average.exchange()
        if validation is not None:
            held_out = evaluate(classifier, recipe, validation, classes=classes, hardware=hardware, features=features)
            result = _add_validation(result, held_out)
        if features:
            result = _add_sources(result, features, tally)
            tally = Counter(features.tally)
        if epoch < recipe.epochs:
            if updates.average:
                updates.average.exchange()
            upcoming = begin(epoch + 1)  # the store reads ahead while the caller uses the result
        yield result
        if checkpoint and epoch < recipe.epochs:
            checkpoint.save_if_due(epoch, classifier, updates)


def _seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the generators that training draws from, like torch.manual_seed, which also prepares to seed all GPUs."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _begin_epoch(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    epoch: int,
    *,
    seed: int,
    hardware: Hardware,
    features: FeatureStore | None,
) -> tuple[Targets, Iterator[Tensor], float]:
    """Let the store read ahead; return an epoch's targets, its prefix outputs and the seconds of this call."""
    started = time.perf_counter()
    view = (epoch - 1) % recipe.views + 1 if recipe.views else epoch
    order = epoch_order(len(images), seed=seed, epoch=view)  # stored outputs have the order of their epoch
    mixing = epoch_mixing(recipe, order, seed=seed, epoch=view)
    chunks = epoch_outputs(
        classifier, recipe, images, order, augmentation=(seed, view), hardware=hardware, store=features, mixing=mixing
    )
    targets = build_targets(torch.from_numpy(images.labels), order, mixing, hardware.device)
    return targets, chunks, time.perf_counter() - started


def _train_epoch(
    batches: Iterable[Tensor],
    targets: Targets,
    passes: Passes,
    updates: Updates,
    device: torch.device,
    on_batch: Callable[[int], None],
) -> tuple[float, float]:
    """Train on one epoch's batches, and return the mean loss and the accuracy over its images as they were trained on.

    With class weights, the loss of a batch is the weighted mean over its images.

    Args:
        batches: the prefix's outputs, one tensor for each step.
        targets: targets of the epoch's images in their order, on the device.
        passes: forward and backward passes of the suffix, which is in training mode.
        updates: steps of the suffix's weights.
        device: device of all tensors.
        on_batch: called after each step with the number of images so far.
    """
    total = torch.zeros((), device=device)
    right = torch.zeros((), device=device, dtype=torch.long if targets.shares is None else torch.double)
    done = 0
    for batch in batches:
        loss, batch_right = passes(batch, targets.part(done, done + len(batch)))
        updates.step()
        total += loss * len(batch)
        right += batch_right
        done += len(batch)
        on_batch(done)
    # item() waits for the device, so that the caller's seconds include its work.
    return total.item() / done, right.item() / done


def _add_validation(result: EpochResult, held_out: Evaluation) -> EpochResult:
    """Return the epoch's result with its validation.

    Raises:
        TrialError: the validation loss is not finite.
    """
    check_finite("val_loss", held_out.loss, result.epoch)
    return dataclasses.replace(result, val_loss=held_out.loss, val_confusion=held_out.confusion, val_s=held_out.seconds)


def _add_sources(result: EpochResult, features: FeatureStore, tally: Counter[Source]) -> EpochResult:
    """Return the epoch's result with the sources of its images in the store, whose tally was `tally` before it."""
    sources: dict[str, int] = dict((features.tally - tally).items())
    return dataclasses.replace(result, features=sources, store_failure=features.failure)


def check_finite(name: str, loss: float, epoch: int) -> None:
    """Check that a loss is finite.

    Raises:
        TrialError: `loss` is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise TrialError(f"{name}: must stay finite, but got {loss} in epoch {epoch}. Lower lr.")


def evaluate(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    *,
    classes: int,
    hardware: Hardware,
    features: FeatureStore | None = None,
) -> Evaluation:
    """Evaluate the classifier on all images without augmentation; prefix outputs may come from the store `features`."""
    started = time.perf_counter()
    logits: list[Tensor] = []
    classify(classifier, recipe, images, logits.append, hardware=hardware, store=features)
    return summarise(torch.cat(logits), images.labels, classes=classes, started=started)


def summarise(scores: Tensor, labels: np.ndarray, *, classes: int, started: float) -> Evaluation:
    """Build an Evaluation from a classifier's scores.

    Args:
        scores: scores (n, classes) before softmax.
        labels: true classes (n,).
        classes: number of classes.
        started: value of time.perf_counter() when the evaluation began.
    """
    scores = scores.float().cpu()  # waits for the device, so that `seconds` includes its work
    predictions = scores.argmax(dim=1).numpy()
    cells = np.bincount(labels * classes + predictions, minlength=classes**2)
    return Evaluation(
        loss=cross_entropy(scores, torch.from_numpy(labels)).item(),
        confusion=cells.reshape(classes, classes).tolist(),
        predictions=predictions.tolist(),
        seconds=time.perf_counter() - started,
        losses=cross_entropy(scores, torch.from_numpy(labels), reduction="none").tolist(),
    )
