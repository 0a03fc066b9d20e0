"""Measure part 6 of the benchmark: decoded images on disk, against images in memory and what others do.

Everything is measured on JPEG files that are made for it. Each measurement runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from study.bench.training import CLASSES, ROUNDS, Figure
from study.compute.features import gather
from study.compute.hardware import choose_hardware
from study.config.load_toml import baseline_recipe
from study.data.audit import audit_images
from study.data.decoding import Form, Unwatched, decode_files, identify_files
from study.data.image_files import FULL_GREY
from study.data.images import Images, fingerprint
from study.data.pixel_store import PixelStore
from study.data.sources import load_dataset
from study.data.splits import split_validation
from study.data.stored_pixels import StoredPixels
from study.dispatch.cluster import TRIAL_ENVIRONMENT
from study.models.classifier import build
from study.training.loop import train

MODEL = "resnet18"
SIDE = 256
"""Side in pixels at which images are stored for a network of 224 px; also that of most generated files."""
PHOTO = (640, 480)
"""(width, height) in pixels of the files that are decoded against the clock."""
SETTLED_S = 20.0
"""Seconds of training after which memory has reached its height."""
SEARCH = """
model = "resnet18"
[budget]
trials = 2
[space]
lr = { type = "float", low = 1e-4, high = 1e-2, log = true }
"""


def measure_large_data(folder: Path, *, few: int, many: int, photos: int, trained: int, grown: int) -> list[Figure]:
    """Measure part 6.

    Args:
        folder: directory for all files.
        few: number of images of the small data set whose second start is measured.
        many: number of images of the large one.
        photos: number of images that are decoded against the clock.
        trained: number of images of an epoch.
        grown: number of images of the larger study whose memory is measured; the smaller has an eighth.
    """
    sets = {count: make_files(folder / f"{count}", count, (SIDE, SIDE)) for count in {few, many, grown // 8, grown}}
    figures = _measure_starts(folder, sets[few], sets[many], few, many)
    figures += _measure_decoding(folder, make_files(folder / "photos", photos, PHOTO), photos)
    figures += _measure_training(folder, make_files(folder / "trained", trained, (SIDE, SIDE)), trained)
    for kind in ("baseline", "search"):
        for count in (grown // 8, grown):
            megabytes = measure_study_memory(folder, sets[count], kind) / 1e6
            figures.append(Figure(6, f"memory of a {kind}, {count:,} images", "MB", [megabytes], images=count))
    return figures


def make_files(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write JPEG files of random smooth pictures into ten class folders; return the folder."""
    starts = range(0, count, 250)
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(partial(_make_some, folder, count, size), starts):
            pass
    return folder


def _make_some(folder: Path, count: int, size: tuple[int, int], start: int) -> None:
    generator = np.random.default_rng(start)
    for index in range(start, min(start + 250, count)):
        place = folder / f"class{index % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        small = generator.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(small).resize(size, Image.Resampling.BILINEAR).save(place / f"{index:06}.jpg", quality=85)


def _measure_starts(folder: Path, small: Path, large: Path, few: int, many: int) -> list[Figure]:
    sides = {few: (small, folder / "starts"), many: (large, folder / "starts")}
    values: dict[int, list[float]] = {count: [] for count in sides}
    for _ in range(ROUNDS + 1):  # the first round decodes
        for count, (source, store) in sides.items():
            values[count].append(_in_process("start", source, store))
    return [Figure(6, f"second start, {count:,} images", "s", values[count][1:], images=count) for count in sides]


def _measure_decoding(folder: Path, photos: Path, count: int) -> list[Figure]:
    sides = {"decoding, ours": "decode", "decoding, bare Pillow threads": "pillow"}
    values: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, task in sides.items():
            with tempfile.TemporaryDirectory(dir=folder) as room:
                values[side].append(count / _in_process(task, photos, Path(room)))
    return [Figure(6, side, "images/s", values[side], images=count) for side in sides]


def _measure_training(folder: Path, source: Path, count: int) -> list[Figure]:
    sides = {
        "training, images in memory": "memory",
        "training, images on disk": "warm",
        "training, images on disk, cold page cache": "cold",
        "reading, ours": "read",
        "reading, torchvision's ImageFolder": "folder",
    }
    store = folder / "trained-store"
    _in_process("start", source, store)
    values: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, task in sides.items():
            values[side].append(_in_process(task, source, store))
    return [Figure(6, side, "images/s", values[side], images=count) for side in sides]


def _in_process(task: str, source: Path, store: Path) -> float:
    command = [sys.executable, "-m", "study.bench.large_data", task, str(source), str(store)]
    done = subprocess.run(command, env={**os.environ, **TRIAL_ENVIRONMENT}, stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _load(source: Path, store: Path | None) -> Any:
    where = None if store is None else PixelStore(store, limit_bytes=10**12)
    return load_dataset(str(source), fraction=1.0, seed=0, image_size=224, data_dir=source, store=where)


def _start(source: Path, store: Path) -> float:
    """Return the seconds that a study needs for its images before it trains."""
    started = time.perf_counter()
    dataset = _load(source, store)
    audit_images(dataset)
    assert dataset.fingerprint and dataset.test.fingerprint
    fingerprint(*split_validation(dataset, fraction=0.1, seed=0))
    return time.perf_counter() - started


def _decode(source: Path, store: Path) -> float:
    paths = sorted(source.rglob("*.jpg"))
    with ThreadPoolExecutor() as pool:
        started = time.perf_counter()
        files = identify_files(source, paths, pool)
        form = Form((SIDE, SIDE), "crop", FULL_GREY)
        _, errors = decode_files(files, form, pool, store=PixelStore(store), watch=Unwatched())
        assert not errors
        return time.perf_counter() - started


def _decode_with_pillow(source: Path, store: Path) -> float:
    """Decode as a short script would: all results are dropped, and nothing is written."""
    paths = sorted(source.rglob("*.jpg"))

    def read(path: Path) -> int:
        with Image.open(path) as image:
            image.draft(None, (2 * SIDE, 2 * SIDE))
            fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BILINEAR)
            return int(np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1)).size)

    with ThreadPoolExecutor() as pool:
        started = time.perf_counter()
        assert all(pool.map(read, paths))
        return time.perf_counter() - started


def _train(source: Path, store: Path, *, memory: bool = False, cold: bool = False) -> float:
    """Return the images per second of an epoch, after an epoch of one batch that warms up."""
    dataset = _load(source, store)
    images = dataset.train
    assert isinstance(images.pixels, StoredPixels)
    recipe = baseline_recipe(MODEL)
    if cold:
        with open(images.pixels.file, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    elif memory:
        images = Images(images.pixels[:], images.labels)
    else:
        assert sum(map(len, images.windows())) == len(images)  # reads all of them
    few = images.take(np.arange(recipe.batch_size)) if not cold else images
    rates = []
    for part in (few, images) if not cold else (images,):
        classifier = build(MODEL, classes=len(dataset.classes), unfreeze_depth=1, pretrained=None, seed=0)
        epochs = train(classifier, recipe, part, classes=len(dataset.classes), seed=0, hardware=choose_hardware("auto"))
        rates.append(next(iter(epochs)).images_per_s)
    return rates[-1]


def _read_store(source: Path, store: Path) -> float:
    """Return the images per second of reading an epoch from the store, in random order."""
    pixels = _load(source, store).train.pixels
    assert isinstance(pixels, StoredPixels)
    order = torch.randperm(len(pixels))
    started = time.perf_counter()
    images = sum(len(gathered) for _, gathered in gather(pixels, order))
    return images / (time.perf_counter() - started)


def _read_folder(source: Path, store: Path) -> float:
    """Return the same with torchvision's ImageFolder, which decodes the files again, and a worker for each core."""
    from torchvision.datasets import ImageFolder  # type: ignore[import-untyped,unused-ignore]
    from torchvision.transforms import v2

    loader = torch.utils.data.DataLoader(  # of the files' own size, like the store's
        ImageFolder(source, v2.PILToTensor()), batch_size=64, shuffle=True, num_workers=os.cpu_count() or 1
    )
    started = time.perf_counter()
    images = sum(len(labels) for _, labels in loader)
    return images / (time.perf_counter() - started)


def measure_study_memory(folder: Path, source: Path, kind: str) -> int:
    """Run a study until it has trained for SETTLED_S; return the greatest memory of all its processes, in bytes.

    It is the sum of the proportional set sizes (Linux), to which Ray's object store belongs, but no page cache.
    """
    room = Path(tempfile.mkdtemp(dir=folder))
    (room / "space.toml").write_text(SEARCH)
    what = ["--baseline", MODEL]
    if kind == "search":  # a store of features this small holds none: they are not what is measured
        what = ["--search", str(room / "space.toml"), "--cache-gb", "0.001"]
    command = [sys.executable, "-m", "study.run", *what, "--data", str(source), "--weights", "none", "--name", "memory"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "memory-cache")}
    peak, training_since = 0, None
    with open(room / "log", "w+b") as log:
        process = subprocess.Popen(command, cwd=room, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, sum(map(_proportional_bytes, _family(process.pid))))
            if training_since is None and b"device " in (room / "log").read_bytes():
                training_since = time.monotonic()
            if training_since is not None and time.monotonic() - training_since > SETTLED_S:
                process.terminate()
                process.wait()
            time.sleep(0.2)
    assert training_since is not None, (room / "log").read_text()
    return peak


def _family(process: int) -> set[int]:
    """Return the ids of a process and its descendants."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    family = {process}
    while children := {one for one, parent in parents.items() if parent in family} - family:
        family |= children
    return family


def _proportional_bytes(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


TASKS: dict[str, Callable[[Path, Path], float]] = {
    "start": _start,
    "decode": _decode,
    "pillow": _decode_with_pillow,
    "memory": partial(_train, memory=True),
    "warm": _train,
    "cold": partial(_train, cold=True),
    "read": _read_store,
    "folder": _read_folder,
}
"""What a process of its own measures, by name."""


def main(arguments: Sequence[str]) -> None:
    """Measure one task in this process, and print the result."""
    task, source, store = arguments
    print(json.dumps(TASKS[task](Path(source), Path(store))))


if __name__ == "__main__":
    main(sys.argv[1:])
