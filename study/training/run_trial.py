"""Run one trial: a plan in, reports out, as a plain generator that needs no Ray."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
import torch

from study.compute.depthwise import DEPTHWISE, gains_from_fp32
from study.compute.feature_store import FeatureStore, default_directory, default_limit_bytes
from study.compute.hardware import Hardware, choose_hardware
from study.config.plan import Plan
from study.data.images import Images
from study.errors import first_line
from study.models.classifier import Classifier, build
from study.models.state_dict import StateDict
from study.results.metrics import EpochResult, Evaluation, Progress, accuracy
from study.training import reference
from study.training.checkpoint import Checkpoint
from study.training.loop import check_finite, evaluate, move_to_device, summarise, train
from study.training.probe import compute_features, fit_probe, measure_prediction

OUT_OF_MEMORY = (
    "out of memory",  # CUDA, cuDNN
    "status_alloc_failed",  # cuBLAS, cuDNN
    "not enough memory",  # torch's allocator on a CPU, like the next line
    "can't allocate memory",
    "cannot allocate memory",  # the operating system
)
"""Texts, in lower case, of out-of-memory errors that have no exception class of their own."""


@dataclass(frozen=True)
class Inputs:
    """Read-only inputs that all trials of a study share through Ray's object store."""

    train: Images
    validation: Images | None
    test: Images | None
    """None in a search, so that nothing can be selected on test images."""
    classes: int
    pretrained: Mapping[str, Mapping[str, np.ndarray] | None]
    """State dict of each model, as arrays because Ray shares arrays without a copy; None for untrained weights."""
    precision: str
    """auto, bf16 or fp32."""
    gpus_per_trial: float = 1.0
    """GPUs of a trial; a fraction if trials share one."""
    cache_gb: float | None = 0.0
    """Size limit of the user's feature store on each node, in GB; None for its default, 0 for no store."""
    seeds: Sequence[int] = ()
    """Seeds of the trials in their order, and that of the trials after them, as far as they are known."""
    study: str = ""
    """Identifier of the study, different from that of every other study."""
    checkpoints: Path | None = None
    """Directory of the checkpoints, one file per trial; None for no checkpoints. If the nodes do not share the
    directory, a trial whose node dies starts again from the first epoch on another node."""


@dataclass(frozen=True)
class Facts:
    """Facts about a trial's process and network, reported before training."""

    device: str
    precision: str
    parameters: int
    trainable_parameters: int
    threads: int
    """Number of CPU threads that torch uses."""
    arithmetic: str
    """Hardware and software that determine the last bits of the results."""
    gradients: str | None = None
    """In which way gradients are computed in another precision than the rest; None if they are not."""
    predict_images_per_s: float | None = None
    """Images per second of the whole network at prediction, measured by a probe; None for other trials."""


@dataclass(frozen=True)
class Failure:
    """Why a trial failed, where an immediate retry would not help."""

    reason: str
    out_of_memory: bool = False
    """Whether memory ran out. The trial may fit if it has the device to itself."""
    stops_study: bool = False
    """Whether the cause would also stop every other trial. The trial runs again once the user has removed the cause."""


@dataclass(frozen=True)
class OpensTest:
    """Notice that a trial is about to see the test images. It counts even if the trial then fails."""


Report = Facts | Progress | EpochResult | OpensTest | Evaluation | Failure


def describe_failure(error: Exception) -> Failure:
    """Build the Failure for an exception. Host, CUDA and its libraries report a lack of memory in different ways."""
    message = first_line(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(text in message.lower() for text in OUT_OF_MEMORY)
    ):
        return Failure(f"out of memory: {message}", out_of_memory=True)
    return Failure(f"{type(error).__name__}: {error}")


def run_trial(plan: Plan, inputs: Inputs, watch: Callable[[Progress], None] | None = None) -> Iterator[Report]:
    """Train one recipe. Yield facts, one result per epoch and, if there is a test set, the evaluation on it.

    With checkpoints, epochs that were saved are not trained again, and the trials of a baseline and of a verdict save
    their last weights.

    Raises:
        TrialError: a loss is not finite.
        RecordError: the disk has no room for the last weights.
    """
    arrays = inputs.pretrained[plan.recipe.model]
    pretrained = None if arrays is None else {name: torch.from_numpy(array) for name, array in arrays.items()}
    if plan.stage == "as-written":
        yield from _run_as_written(plan, inputs, pretrained, watch)
        return
    hardware = choose_hardware(inputs.precision, min(1.0, inputs.gpus_per_trial) or 1.0)
    classifier = build(
        plan.recipe.model,
        classes=inputs.classes,
        unfreeze_depth=plan.recipe.unfreeze_depth,
        pretrained=pretrained,
        seed=plan.seed,
    )
    store = None if inputs.cache_gb == 0 else _open_store(inputs.cache_gb)
    if plan.probes:
        yield from _run_probe(plan, inputs, classifier, hardware, store, watch)
        return
    yield _facts(classifier.network, hardware)
    checkpoint = None
    if inputs.checkpoints:
        checkpoint = open_checkpoint(inputs.checkpoints, inputs.study, plan)
    ahead = Thread(target=_build_next, args=(classifier, plan, inputs), name="next network")

    def on_step(progress: Progress) -> None:
        if watch:
            watch(progress)
        if ahead.ident is None:  # not before the first step, which would wait for Python's lock
            ahead.start()

    yield from train(
        classifier,
        plan.recipe,
        inputs.train,
        classes=inputs.classes,
        seed=plan.seed,
        hardware=hardware,
        validation=inputs.validation,
        watch=on_step,
        features=store,
        checkpoint=checkpoint,
    )
    if checkpoint and plan.keeps_weights:
        checkpoint.save(plan.recipe.epochs, classifier)  # before the test, so that the tested weights are on disk
    if inputs.test is not None:
        yield OpensTest()
        test = evaluate(classifier, plan.recipe, inputs.test, classes=inputs.classes, hardware=hardware, features=store)
        check_finite("test_loss", test.loss, plan.recipe.epochs)
        yield test if plan.stage == "final" else replace(test, losses=None)


def _build_next(classifier: Classifier, plan: Plan, inputs: Inputs) -> None:
    """Build the next trial's network: for this trial's seed, and for the next one, so that either is at hand."""
    with suppress(Exception):  # for lack of memory, for example: the next trial then builds it, and fails if it must
        classifier.build_ahead(plan.seed)
        if plan.seed in inputs.seeds[:-1] and inputs.pretrained[plan.recipe.model] is not None:
            classifier.build_ahead(inputs.seeds[inputs.seeds.index(plan.seed) + 1])


def _run_probe(
    plan: Plan,
    inputs: Inputs,
    classifier: Classifier,
    hardware: Hardware,
    store: FeatureStore | None,
    watch: Callable[[Progress], None] | None,
) -> Iterator[Report]:
    """Fit a linear probe on the training images, and yield facts and one result, with its validation.

    The epoch's seconds are those of the features of the training images and of all fits.
    """
    recipe, held_out = plan.recipe, inputs.validation
    assert held_out is not None
    move_to_device(classifier, hardware)
    speed = measure_prediction(classifier, recipe, held_out, hardware)
    yield replace(_facts(classifier.network, hardware), predict_images_per_s=speed)
    tally = Counter(store.tally) if store else Counter()
    started = time.perf_counter()

    def on_chunk(done: int) -> None:
        if watch:
            watch(Progress(1, done, len(inputs.train), done / (time.perf_counter() - started)))

    features = compute_features(classifier, recipe, inputs.train, hardware, store, on_chunk)
    features_s = time.perf_counter() - started
    held_features = compute_features(classifier, recipe, held_out, hardware, store)
    held_out_s = time.perf_counter() - started - features_s
    probe = fit_probe(
        features,
        inputs.train.labels,
        held_features,
        held_out.labels,
        classes=inputs.classes,
        balanced=recipe.class_weights == "balanced",
    )
    epoch_s = time.perf_counter() - started - held_out_s
    validation = summarise(probe.logits(held_features), held_out.labels, classes=inputs.classes, started=started)
    training = summarise(probe.logits(features), inputs.train.labels, classes=inputs.classes, started=started)
    yield EpochResult(
        1,
        training.loss,
        epoch_s,
        len(inputs.train) / epoch_s,
        train_accuracy=accuracy(training.confusion),
        val_loss=validation.loss,
        val_confusion=validation.confusion,
        val_s=held_out_s,
        features=dict((store.tally - tally).items()) if store else None,
        store_failure=store.failure if store else None,
    )


def open_checkpoint(directory: Path, study: str, plan: Plan) -> Checkpoint:
    """Return the checkpoint of a trial; `study` is the identifier that `Inputs.study` describes."""
    owner = json.dumps({"study": study, "stage": plan.stage, "number": plan.number, "seed": plan.seed})
    # Version 0.1.0 named the owner by the repr of its Plan, whose other fields follow from these in a study.
    former = rf" Plan\(number={plan.number}, stage='{plan.stage}', recipe=Recipe\(.*\), seed={plan.seed}\)"
    return Checkpoint(directory / plan.checkpoint, owner, re.compile(re.escape(study) + former))


@cache
def _open_store(cache_gb: float | None) -> FeatureStore:
    """Return the process's only store, which remembers whether storing is worthwhile and whether the disk works."""
    directory = default_directory()
    return FeatureStore(directory, default_limit_bytes(directory) if cache_gb is None else round(cache_gb * 1e9))


def _run_as_written(
    plan: Plan, inputs: Inputs, pretrained: StateDict | None, watch: Callable[[Progress], None] | None
) -> Iterator[Report]:
    """Train like the assignment's solution, on the GPU or CPU, in fp32, without feature store and checkpoints."""
    hardware = reference.choose_hardware()
    network = reference.build(plan.recipe.model, classes=inputs.classes, pretrained=pretrained, seed=plan.seed)
    yield _facts(network, hardware)
    images = len(inputs.train)
    started = time.perf_counter()

    def send(epoch: int, done: int) -> None:
        if watch:
            watch(Progress(epoch, done, images, done / (time.perf_counter() - started)))

    for epoch in reference.train(network, plan.recipe, inputs.train, seed=plan.seed, hardware=hardware, watch=send):
        epoch_s = time.perf_counter() - started
        check_finite("train_loss", epoch.loss, epoch.number)
        yield EpochResult(epoch.number, epoch.loss, epoch_s, images / epoch_s, train_accuracy=epoch.accuracy)
        started = time.perf_counter()
    if inputs.test is not None:
        yield OpensTest()
        scores = reference.evaluate(network, plan.recipe, inputs.test, seed=plan.seed, hardware=hardware)
        test = summarise(scores, inputs.test.labels, classes=inputs.classes, started=started)
        check_finite("test_loss", test.loss, plan.recipe.epochs)
        yield replace(test, losses=None)


def _facts(network: torch.nn.Module, hardware: Hardware) -> Facts:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    on_gpu, threads = hardware.device.type == "cuda", torch.get_num_threads()
    return Facts(
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, {threads} thread{'s' if threads > 1 else ''}",
        precision=hardware.precision,
        parameters=sum(count for count, _ in counts),
        trainable_parameters=sum(count for count, trained in counts if trained),
        threads=threads,
        arithmetic=hardware.arithmetic,
        gradients=DEPTHWISE if any(gains_from_fp32(module, hardware) for module in network.modules()) else None,
    )
