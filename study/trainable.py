"""The Ray Tune boundary of one trial: a plan in, reports out.

`run_trial` is a plain generator that needs no Ray; `trainable` hands what it yields to Ray Tune.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from study import notebook
from study.checkpoint import Checkpoint
from study.config import Plan
from study.data import Images
from study.errors import RecordError, StudyError, first_line
from study.features import describe_arithmetic
from study.memory import release_memory
from study.models import StateDict, build
from study.store import FeatureStore, default_directory, default_limit_bytes
from study.training import (
    EpochResult,
    Evaluation,
    Hardware,
    Progress,
    check_finite,
    choose_hardware,
    evaluate,
    summarise,
    train,
)

PROGRESS_S = 2.0
"""Seconds between two reports of how far an epoch is."""
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, cuDNN
    "status_alloc_failed",  # cuBLAS, cuDNN
    "not enough memory",  # torch's allocator on a CPU, like the next
    "can't allocate memory",
    "cannot allocate memory",  # the operating system
)
"""What errors say that are not of a class of their own."""


@dataclass(frozen=True)
class Inputs:
    """What all trials of a study share, read-only, through Ray's object store."""

    train: Images
    validation: Images | None
    test: Images | None
    """None in a search: its trials cannot see what they must not select on."""
    classes: int
    pretrained: Mapping[str, Mapping[str, np.ndarray] | None]
    """By model: a state dict as arrays, since Ray shares arrays without a copy; None for untrained weights."""
    precision: str
    """auto, bf16 or fp32."""
    cache_gb: float | None = 0.0
    """Bound on the feature store of each node's user, in GB; None for its default, 0 for no store."""
    study: str = ""
    """Names the study among all others."""
    checkpoints: Path | None = None
    """Where trials keep their weights, a file a trial; a directory that all nodes see, or a trial whose node dies
    starts anew on the next. None for nowhere."""


@dataclass(frozen=True)
class Facts:
    """What a trial's process says of itself before it trains."""

    device: str
    precision: str
    parameters: int
    trainable_parameters: int
    threads: int
    """That torch computes with."""
    arithmetic: str
    """The hardware and software whose last bits the results have."""


@dataclass(frozen=True)
class Failure:
    """Why a trial cannot go on, where trying again would not help."""

    reason: str
    out_of_memory: bool = False
    """It may fit where it has the device to itself."""
    stops_study: bool = False
    """It is none of the trial's, and would befall the next one too: it is to run again once that is mended."""


@dataclass(frozen=True)
class OpensTest:
    """A trial is about to see the test images, whatever comes of that."""


Report = Facts | Progress | EpochResult | OpensTest | Evaluation | Failure


def trainable(config: dict[str, Any], *, inputs: Inputs) -> None:
    """Run the trial `config["plan"]` and report to Ray Tune; exceptions become a Failure, not a retry."""

    def send(report: Report) -> None:
        tune.report({"report": report})

    last = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_S:
            last = time.monotonic()
            send(progress)

    # Ray's arrays are read-only, and nothing here writes to them: torch's warning would tell nobody anything.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    try:
        for report in run_trial(config["plan"], inputs, watch):
            send(report)
        return
    except RecordError as error:
        failure = Failure(f"{error} Make room, and --resume.", stops_study=True)
    except StudyError as error:
        failure = Failure(str(error))
    except Exception as error:
        # A bug or a broken installation fails alike the second time; Ray retries only dead processes.
        failure = describe_failure(error)
    if failure.out_of_memory:
        release_memory()  # out here, where no traceback holds the trial's tensors: whoever runs next may need it all
    send(failure)


def describe_failure(error: Exception) -> Failure:
    """Say why a trial cannot go on; host, CUDA and its libraries each have a way of their own to be out of memory."""
    said = first_line(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(words in said.lower() for words in OUT_OF_MEMORY)
    ):
        return Failure(f"out of memory: {said}", out_of_memory=True)
    return Failure(f"{type(error).__name__}: {error}")


def run_trial(plan: Plan, inputs: Inputs, watch: Callable[[Progress], None] | None = None) -> Iterator[Report]:
    """Train one recipe and yield its facts, one result an epoch, and its test where there is a test set.

    With checkpoints, what was trained before is not trained again; the verdict's trials leave their last weights there.

    Raises:
        TrialError: a loss is not finite.
        RecordError: the disk has no room for those.
    """
    arrays = inputs.pretrained[plan.recipe.model]
    pretrained = None if arrays is None else {name: torch.from_numpy(array) for name, array in arrays.items()}
    if plan.stage == "as-written":
        yield from _run_as_written(plan, inputs, pretrained, watch)
        return
    hardware = choose_hardware(inputs.precision)
    classifier = build(
        plan.recipe.model,
        classes=inputs.classes,
        unfreeze_depth=plan.recipe.unfreeze_depth,
        pretrained=pretrained,
        seed=plan.seed,
    )
    yield _facts(classifier.network, hardware)
    store = None if inputs.cache_gb == 0 else _open_store(inputs.cache_gb)
    checkpoint = None
    if inputs.checkpoints:
        checkpoint = open_checkpoint(inputs.checkpoints, inputs.study, plan)
    yield from train(
        classifier,
        plan.recipe,
        inputs.train,
        classes=inputs.classes,
        seed=plan.seed,
        hardware=hardware,
        validation=inputs.validation,
        watch=watch,
        features=store,
        checkpoint=checkpoint,
    )
    if checkpoint and plan.stage == "final":
        checkpoint.save(plan.recipe.epochs, classifier)  # before its test: what was tested is there to be kept
    if inputs.test is not None:
        yield OpensTest()
        test = evaluate(classifier, plan.recipe, inputs.test, classes=inputs.classes, hardware=hardware, features=store)
        check_finite("test_loss", test.loss, plan.recipe.epochs)
        yield test


def open_checkpoint(directory: Path, study: str, plan: Plan) -> Checkpoint:
    """Return where a trial of the study with that uid keeps its weights."""
    return Checkpoint(directory / plan.checkpoint, f"{study} {plan}")


@cache
def _open_store(cache_gb: float | None) -> FeatureStore:
    """Return the process's store: one, since it remembers what pays, and whether the disk works."""
    directory = default_directory()
    return FeatureStore(directory, default_limit_bytes(directory) if cache_gb is None else round(cache_gb * 1e9))


def _run_as_written(
    plan: Plan, inputs: Inputs, pretrained: StateDict | None, watch: Callable[[Progress], None] | None
) -> Iterator[Report]:
    """Train as the assignment's solution did, on the CPU or GPU in fp32; it keeps nothing between epochs."""
    hardware = Hardware(notebook.choose_device(), "fp32")
    network = notebook.build(plan.recipe.model, classes=inputs.classes, pretrained=pretrained, seed=plan.seed)
    yield _facts(network, hardware)
    images = len(inputs.train)
    started = time.perf_counter()

    def tell(epoch: int, done: int) -> None:
        if watch:
            watch(Progress(epoch, done, images, done / (time.perf_counter() - started)))

    for epoch in notebook.train(network, plan.recipe, inputs.train, seed=plan.seed, device=hardware.device, watch=tell):
        epoch_s = time.perf_counter() - started
        check_finite("train_loss", epoch.loss, epoch.number)
        yield EpochResult(epoch.number, epoch.loss, epoch_s, images / epoch_s, train_accuracy=epoch.accuracy)
        started = time.perf_counter()
    if inputs.test is not None:
        yield OpensTest()
        scores = notebook.evaluate(network, plan.recipe, inputs.test, seed=plan.seed, device=hardware.device)
        test = summarise(scores, inputs.test.labels, classes=inputs.classes, started=started)
        check_finite("test_loss", test.loss, plan.recipe.epochs)
        yield test


def _facts(network: torch.nn.Module, hardware: Hardware) -> Facts:
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    on_gpu = hardware.device.type == "cuda"
    return Facts(
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        precision=hardware.precision,
        parameters=sum(count for count, _ in counts),
        trainable_parameters=sum(count for count, trained in counts if trained),
        threads=torch.get_num_threads(),
        arithmetic=describe_arithmetic(hardware.device),
    )
