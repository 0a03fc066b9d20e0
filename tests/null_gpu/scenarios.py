"""Run one scenario on the null GPU and print what was seen as JSON: `python scenarios.py NAME DIRECTORY`.

A scenario is a function below, run in a process under the environment that `support.null_gpu.build` returns.
"""

import itertools
import json
import os
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch
from counters import read_counts, reset_counts
from support.images import make_images, store_images
from support.manifests import small_recipe

from study.augmentation.mixing import Targets
from study.bench.training import AUGMENTATION
from study.compute.feature_store import FeatureStore
from study.compute.features import epoch_outputs
from study.compute.gpu_cache import SHARE, device_memory, release_memory
from study.compute.hardware import Hardware, choose_hardware
from study.config.catalogue import catalogue
from study.config.recipe import Recipe
from study.data.images import Images
from study.models.classifier import Classifier, build
from study.results.metrics import EpochResult
from study.training.checkpoint import Checkpoint
from study.training.loop import evaluate, move_to_device, train
from study.training.passes import GraphedPass, Passes, PlainPass
from study.training.run_trial import describe_failure

FAMILIES = (
    "resnet18",
    "vgg16",
    "vgg11_bn",
    "resnext50_32x4d",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "convnext_tiny",
    "timm/convnext_atto",
    "timm/test_vit",
    "timm/tf_efficientnet_lite0",
    "timm/tiny_vit_5m_224",
)
Seen = dict[str, object]


def families(room: Path) -> Seen:
    """Train and evaluate one network of each family, and return the precision of each or its error."""
    return {model: _train_once(model, room / model.replace("/", "-")) for model in FAMILIES}


def batches(room: Path) -> Seen:
    """Return the counts of one batch of ResNet18, and of a small vision transformer."""
    return {"resnet18": _count_batches("resnet18", room / "resnet18"), "vit": _count_batches("timm/test_vit", room)}


def _count_batches(model: str, room: Path) -> Seen:
    """Return the counts of one batch of 64 images at depth 1, by the source of its prefix outputs.

    A batch's counts are the difference between epochs of 512 and 1,024 images, so that they hold nothing that happens
    once per epoch. Everything that happens once per process has happened in an epoch before.
    """
    hardware = choose_hardware("bf16")
    recipe = small_recipe(model=model, epochs=1, batch_size=64)
    totals: dict[str, list[dict[str, int]]] = {}
    for turn, images in enumerate((make_images(512), make_images(512), make_images(1024))):
        store = FeatureStore(room / str(turn), 10**9, tolerance_s=float("inf"))
        for source in ("computed", "files", "memory"):
            if source != "memory":
                release_memory()
            classifier = _build(model)
            reset_counts()
            _train(classifier, recipe, images, store, hardware)
            totals.setdefault(source, []).append(asdict(read_counts()))
        reset_counts()
        evaluate(classifier, recipe, images, classes=3, hardware=hardware)
        totals.setdefault("evaluation", []).append(asdict(read_counts()))
    return {
        source: {"batch": {name: (large[name] - small[name]) / 8 for name in small}, "epoch": small}
        for source, (_, small, large) in totals.items()
    }


def sources(room: Path) -> Seen:
    """Train on outputs of every source that a store has, and return what it counted and the calls of cuDNN."""
    images, hardware = make_images(128), choose_hardware("bf16", 1e-9)  # nothing fits into the cache on the device
    blocked = room / "blocked"
    blocked.touch()
    full = FeatureStore(room / "full", 10**9, tolerance_s=float("inf"))
    paths = {
        "without store": (None, images, 1),
        "unusable store": (FeatureStore(blocked, 10**9), images, 1),
        "small store": (FeatureStore(room / "small", 10**4), images, 1),
        "images from a file": (None, store_images(images, room / "images"), 1),
        "empty store": (full, images, 2),
        "full store": (full, images, 2),
        "fewer frozen blocks": (full, images, 1),
    }
    warnings.simplefilter("ignore", RuntimeWarning)  # of the store that cannot be used
    seen: Seen = {}
    for name, (store, pictures, depth) in paths.items():
        before = Counter(store.tally) if store else Counter()
        recipe = small_recipe(epochs=1, batch_size=64, unfreeze_depth=depth)
        reset_counts()
        _train(_build("resnet18", depth), recipe, pictures, store, hardware)
        tally = dict(store.tally - before) if store else {}
        seen[name] = {"tally": tally, "network_calls": read_counts().network_calls}
    return seen


def graphs(room: Path) -> Seen:
    """Return the counts of replaying a captured pass of ResNet18, and what becomes of a pass that waits."""
    hardware, recipe = choose_hardware("bf16"), small_recipe(epochs=1, batch_size=64)
    classifier = _build("resnet18")
    move_to_device(classifier, hardware)
    classifier.set_training()
    plain = PlainPass(classifier.suffix, None, 0.0, hardware)
    outputs = epoch_outputs(
        classifier, recipe, make_images(64), torch.arange(64), augmentation=None, hardware=hardware, store=None
    )
    batch, target = next(outputs).clone(), Targets(torch.zeros(64, dtype=torch.long, device="cuda"))
    counts = {}
    for name, run in (("plain", plain), ("graph", None)):
        run = run or GraphedPass(plain, classifier.suffix, batch, target)
        run(batch, target)
        reset_counts()
        run(batch, target)
        counts[name] = asdict(read_counts())
    waiting = Passes(replace(plain, suffix=_Waiting(classifier.suffix)), graphs=True)
    reset_counts()
    for _ in range(2):
        waiting(batch, target)
    epochs = _train(_build("resnet18"), recipe, make_images(128), None, hardware)
    return {**counts, "failure": waiting.failure, "waits": asdict(read_counts()), "epochs": len(epochs)}


class _Waiting(torch.nn.Module):
    """A network that waits for the GPU in each pass, which no graph can hold."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the network's outputs, after waiting for them."""
        outputs = torch.nn.functional.dropout(self.network(images))  # whose generator a capture takes over
        outputs.sum().item()
        return outputs


def partial(room: Path) -> Seen:
    """Train twice where the device memory takes the images and one epoch of three; return what the cache did."""
    images, recipe = make_images(512), small_recipe(epochs=3, batch_size=64)
    epoch_bytes, total_bytes = 512 * 256 * 2 * 2 * 2, torch.cuda.mem_get_info()[1]
    hardware = choose_hardware("bf16", (images.pixels.nbytes + 1.5 * epoch_bytes) / (SHARE * total_bytes))
    store, memory = (
        FeatureStore(room, 10**9, tolerance_s=float("inf")),
        device_memory(hardware.device, hardware.gpu_share),
    )
    used = []
    for _ in range(2):
        _train(_build("resnet18"), recipe, images, store, hardware)
        used.append(memory.used_bytes)
    return {"used": used, "limit": memory.limit_bytes, "whole": images.pixels.nbytes + epoch_bytes}


def out_of_memory(room: Path) -> Seen:
    """Train a network that does not fit, then one that fits, on a GPU of NULL_CUDA_TOTAL_BYTES."""
    images, store = make_images(64), FeatureStore(room, 10**9)
    try:
        _train(_build("resnext50_32x4d"), small_recipe(model="resnext50_32x4d"), images, store)
        failure = None
    except Exception as error:
        failure = asdict(describe_failure(error))
    release_memory()
    left = torch.cuda.memory_allocated()
    results = _train(_build("mobilenet_v3_small"), small_recipe(model="mobilenet_v3_small"), images, store)
    return {"failure": failure, "left_bytes": left, "epochs": [result.epoch for result in results]}


def augmentation(room: Path) -> Seen:
    """Run part 4 of the benchmark twice, and return the second run's counts."""
    for _ in range(2):
        reset_counts()
        AUGMENTATION["ours"][0](make_images(2048), {})
    return asdict(read_counts())


def checkpoints(room: Path) -> Seen:
    """Break a trial off after the first of two epochs, and train it to its end; return the epochs of both parts."""
    images, recipe, hardware = make_images(64), small_recipe(epochs=2), choose_hardware("bf16")
    epochs = []
    for taken in (2, None):  # the first epoch is saved when the second one is asked for
        checkpoint = Checkpoint(room / "trial.safetensors", "owner", every_s=0)
        classifier = _build("resnet18")
        results = train(classifier, recipe, images, classes=3, seed=0, hardware=hardware, checkpoint=checkpoint)
        epochs.append([result.epoch for result in itertools.islice(results, taken)])
    return {"epochs": epochs}


def _train(
    classifier: Classifier, recipe: Recipe, images: Images, store: FeatureStore | None, hardware: Hardware | None = None
) -> list[EpochResult]:
    hardware = hardware or choose_hardware("bf16")
    return list(train(classifier, recipe, images, classes=3, seed=0, hardware=hardware, features=store))


def main() -> None:
    """Run the scenario that the command names."""
    name, room = sys.argv[1], Path(sys.argv[2])
    try:
        seen = globals()[name](room)
        print(json.dumps(seen), flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # the libraries' own ends would look for a real card


def _build(model: str, depth: int = 1) -> Classifier:
    return build(model, classes=3, unfreeze_depth=depth, pretrained=None, seed=0)


def _train_once(model: str, room: Path) -> Seen:
    warnings.simplefilter("error")  # torch warns of operations that are not deterministic
    entry = catalogue()[model]
    side = 32 if entry.allows(32) else entry.size
    images, recipe = make_images(64), small_recipe(model=model, epochs=2, batch_size=32, image_size=side)
    hardware, store = choose_hardware("auto"), FeatureStore(room, 10**9)
    classifier = _build(model)
    results = list(
        train(classifier, recipe, images, classes=3, seed=0, hardware=hardware, validation=images, features=store)
    )
    return {"epochs": len(results), "precision": hardware.precision}


if __name__ == "__main__":
    main()
