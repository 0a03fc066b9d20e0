"""Load a data set: CIFAR-10, scikit-learn's digits or a folder, as uint8 arrays with labels.

Normalises nothing and augments nothing. torchvision and scikit-learn are imported only by the source that needs them.
"""

import http.client
import os
import socket
import urllib.error
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from study.errors import ConfigError, DataError, StudyError

if TYPE_CHECKING:
    from study.data.images import Dataset
    from study.results.record import Record

from study.data.image_files import EXTENSIONS, decode, image_files, stored_size, upright_size
from study.data.images import Dataset, Images
from study.data.splits import split, subset

PARTS = ("train", "test")

NETWORK_TIMEOUT_S = 15
"""Seconds for one connection; a server has at most two addresses, IPv6 and IPv4."""

DIGITS_SIDE = 32
"""Side in pixels to which the digits are enlarged: CIFAR's, since 8 pixels are too few for AutoAugment."""


def load_dataset(source: str, *, fraction: float, seed: int, image_size: int, data_dir: Path) -> Dataset:
    """Load `cifar10`, `digits` or an image folder, and keep a stratified fraction of its training and test images.

    Args:
        source: `cifar10`, `digits`, or a folder that holds `train/<class>/…` and `test/<class>/…`.
        fraction: share of the images of each class to keep, in (0, 1]; what is kept stays in the source's order.
        seed: seed of the subset.
        image_size: side in pixels that the network sees; it bounds the size at which a folder's images are stored.
        data_dir: directory of CIFAR-10, to which it is downloaded if it is missing.

    Raises:
        ConfigError: the fraction is out of range.
        DataError: images are missing, unreadable or too few.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"--fraction: must be in (0, 1], but got {fraction}.")
    if source == "cifar10":
        whole = _load_cifar10(data_dir)
    elif source == "digits":
        whole = _load_digits()
    elif Path(source).is_dir():
        return _load_folder(Path(source), fraction=fraction, seed=seed, image_size=image_size)
    else:
        raise DataError(f"{source}: must be a folder that holds train/ and test/, but there is no such folder.")
    train, test = (
        images.take(subset(images.labels, whole.classes, fraction=fraction, seed=seed, place=f"{source}/{part}"))
        for part, images in zip(PARTS, (whole.train, whole.test), strict=True)
    )
    return Dataset(source, whole.classes, train, test, fraction)


def _load_cifar10(data_dir: Path) -> Dataset:
    """Read all of CIFAR-10 (Krizhevsky, 2009) through torchvision, which downloads it once and checks its MD5 sums."""
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped,unused-ignore]

    ways_round = f"Put {CIFAR10.filename} into {data_dir}, or use --data PATH or --demo."
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        train = CIFAR10(data_dir, train=True, download=True)
        test = CIFAR10(data_dir, train=False)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        damaged = _damaged_cifar10_file(data_dir)
        also = f", and {damaged} is damaged" if damaged else ""
        raise DataError(f"cifar10: download from {CIFAR10.url} failed ({error}){also}. {ways_round}") from error
    except RuntimeError as error:  # torchvision raises it for a wrong MD5 sum
        damaged = _damaged_cifar10_file(data_dir) or data_dir / CIFAR10.base_folder
        raise DataError(
            f"{damaged}: must be a file of CIFAR-10, but its MD5 sum is wrong. Delete it and {CIFAR10.base_folder}."
            f" {ways_round}"
        ) from error
    except OSError as error:
        raise DataError(f"{error.filename or data_dir}: must be readable and writable: {error.strerror}.") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return Dataset("cifar10", tuple(train.classes), _cifar10_images(train), _cifar10_images(test), 1.0)


def _cifar10_images(part: Any) -> Images:
    pixels = np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))
    return Images(pixels, np.array(part.targets, np.int64))


def _damaged_cifar10_file(data_dir: Path) -> Path | None:
    """Return the first file of CIFAR-10 in `data_dir` that has a wrong MD5 sum; None if there is none."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity  # type: ignore[import-untyped,unused-ignore]

    batches = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    files = [(data_dir / CIFAR10.filename, CIFAR10.tgz_md5)]
    files += [(data_dir / CIFAR10.base_folder / name, md5) for name, md5 in batches]
    return next((path for path, md5 in files if path.is_file() and not check_integrity(path, md5)), None)


def _load_digits() -> Dataset:
    """Read scikit-learn's 1,797 digits (UCI, Alpaydin & Kaynak) of 8×8 px, and hold out a fixed fifth for testing."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    side = (DIGITS_SIDE, DIGITS_SIDE)
    enlarged = [np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)) for image in grey]
    images = Images(np.repeat(np.stack(enlarged)[:, None], 3, axis=1), digits.target.astype(np.int64))
    train, test = split(images, fraction=0.2, seed=0)
    return Dataset("digits", tuple("0123456789"), train, test, 1.0)


def _load_folder(root: Path, *, fraction: float, seed: int, image_size: int) -> Dataset:
    """Choose files by name, then decode the chosen ones to one size for training and test."""
    try:
        files = _list_folder(root)
    except OSError as error:
        raise DataError(f"{error.filename}: must be readable: {error.strerror}.") from error
    classes = tuple(files["train"])
    chosen = []
    for part, by_class in files.items():
        paths = [path for found in by_class.values() for path in found]
        labels = np.repeat(np.arange(len(classes)), [len(found) for found in by_class.values()])
        kept = subset(labels, classes, fraction=fraction, seed=seed, place=str(root / part))
        chosen.append(([paths[index] for index in kept], labels[kept]))
    # Between its limit and twice its limit, Pillow only warns of a decompression bomb. Threads share this filter.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        sizes = set(pool.map(upright_size, [path for paths, _ in chosen for path in paths]))
        size = stored_size(sizes, image_size)
        train, test = (Images(decode(paths, size, pool), labels) for paths, labels in chosen)
    return Dataset(root.resolve().name, classes, train, test, fraction)


def _list_folder(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Return the image files of each class of train/ and test/, all sorted by name."""
    files: dict[str, dict[str, list[Path]]] = {}
    for part in PARTS:
        if not (root / part).is_dir():
            raise DataError(f"{root}: must hold train/<class>/… and test/<class>/…, but has no {part}/.")
        names = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir() and entry.name[0] != ".")
        files[part] = {name: list(image_files(root / part / name)) for name in names}
    train, test = files["train"], files["test"]
    differences = [f"{name!r} (in train/ only)" for name in train if name not in test]
    differences += [f"{name!r} (in test/ only)" for name in test if name not in train]
    if differences:
        raise DataError(f"{root}: train/ and test/ must hold the same classes, but got {', '.join(differences)}.")
    if len(train) < 2:
        raise DataError(f"{root}: must hold 2 classes or more, but got {', '.join(map(repr, train)) or 'none'}.")
    for part, by_class in files.items():
        for name, found in by_class.items():
            if not found:
                raise DataError(f"{root / part / name}: must hold an image, but has none ({', '.join(EXTENSIONS)}).")
    return files


def find_images(record: "Record") -> "Dataset | None":
    """Return the images of a study; None if they are missing or have changed since. Download nothing."""
    from study.data.images import fingerprint

    manifest = record.manifest
    if manifest.source == "cifar10" and not _has_cifar10(Path(manifest.data_dir)):
        return None
    try:
        dataset = load_dataset(
            manifest.source,
            fraction=manifest.fraction,
            seed=manifest.seed,
            image_size=manifest.image_size,
            data_dir=Path(manifest.data_dir),
        )
    except StudyError:
        return None
    return dataset if fingerprint(dataset.train, dataset.test) == manifest.data_fingerprint else None


def _has_cifar10(data_dir: Path) -> bool:
    """Return whether `data_dir` holds the complete CIFAR-10, so that `load_dataset` does not download it."""
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped,unused-ignore]

    try:
        CIFAR10(data_dir, train=False, download=False)
    except (RuntimeError, OSError):  # torchvision's errors for missing, damaged and unreadable files
        return False
    return True
