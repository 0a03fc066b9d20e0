"""Where images come from: CIFAR-10, scikit-learn's digits or a folder, read once into uint8 arrays with labels.

Owns the stratified subset, the hold-out split and the fingerprint. Knows no model, normalises nothing and augments
nothing; torchvision and scikit-learn are imported only by the source that needs them.
"""

import hashlib
import http.client
import os
import socket
import urllib.error
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from study.errors import ConfigError, DataError
from study.seeding import derive_seed

PARTS = ("train", "test")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What Pillow may try; a file's name decides nothing, and its readers that start other programs stay out."""
NETWORK_TIMEOUT_S = 15
"""For one connection: a server is tried at two addresses at most, IPv6 and IPv4."""
DIGITS_SIDE = 32
"""CIFAR's side in pixels; the digits' own 8 would leave AutoAugment nothing to work on."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one size."""

    pixels: NDArray[np.uint8]
    """(n, 3, height, width) uint8, RGB, C-contiguous."""
    labels: NDArray[np.int64]
    """(n,) int64, indices into the data set's classes."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of these images alone; reading all of them takes a while, so it is kept."""
        return fingerprint(self)

    def take(self, indices: NDArray[np.int64]) -> "Images":
        """Return a copy of the images at these indices, in their order."""
        return Images(self.pixels[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test images of the same classes."""

    name: str
    """cifar10, digits or the folder's name; it names the MLflow experiment."""
    classes: tuple[str, ...]
    train: Images
    test: Images
    fraction: float
    """Share of the source's images that was kept, in (0, 1]."""


def load_dataset(source: str, *, fraction: float, seed: int, image_size: int, data_dir: Path) -> Dataset:
    """Load `cifar10`, `digits` or an image folder, and keep a stratified fraction of its train and test images.

    Args:
        source: `cifar10`, `digits`, or a folder that holds `train/<class>/…` and `test/<class>/…`.
        fraction: share of the images of each class to keep, in (0, 1]; what is kept stays in the source's order.
        seed: of the subset.
        image_size: side that the network will see, in pixels; bounds the size at which a folder's images are stored.
        data_dir: where CIFAR-10 lies or is downloaded to.

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
        images.take(_subset(images.labels, whole.classes, fraction=fraction, seed=seed, place=f"{source}/{part}"))
        for part, images in zip(PARTS, (whole.train, whole.test), strict=True)
    )
    return Dataset(source, whole.classes, train, test, fraction)


def split(images: Images, *, fraction: float, seed: int) -> tuple[Images, Images]:
    """Hold out a stratified fraction of the images; each class has at least one image on both sides.

    Returns:
        The rest and what is held out: disjoint, together all of `images`, both in their order.

    Raises:
        DataError: a class has a single image.
    """
    sizes = np.bincount(images.labels)
    if 1 in sizes:
        raise DataError(
            f"validation split: every class must have 2 training images or more, but class {sizes.tolist().index(1)}"
            " (in the order of the classes, from 0) has 1. Add images, or raise --fraction."
        )
    counts = np.clip(_quotas(sizes, fraction), 1, np.maximum(sizes - 1, 1))
    held_out = _draw(images.labels, counts, derive_seed(seed, "split"))
    rest = np.delete(np.arange(len(images)), held_out)
    return images.take(rest), images.take(held_out)


def fingerprint(*parts: Images) -> str:
    """Return 16 hex digits of a SHA-256 over shape, labels and pixels: the same images, the same fingerprint."""
    digest = hashlib.sha256()
    for images in parts:
        digest.update(repr(images.pixels.shape).encode())
        digest.update(np.ascontiguousarray(images.labels).data)
        digest.update(np.ascontiguousarray(images.pixels).data)
    return digest.hexdigest()[:16]


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the first frame of an image file, upright and as RGB, on white where it is transparent.

    Args:
        path: of any size and mode; 16-bit grey is scaled to 8 bits.
        size: (width, height) in pixels. Any other size is resized (bilinear, antialiased) to cover it, then
            centre-cropped.

    Returns:
        (3, height, width) uint8.

    Raises:
        DataError: the file cannot be read whole.
    """
    with _opened(path) as image:
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size leaves enough to filter.
        image.draft(None, (2 * size[0], 2 * size[1]))
        fitted = ImageOps.fit(_to_rgb(ImageOps.exif_transpose(image)), size, Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def _quotas(sizes: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Return how many images of each class to draw, by largest remainder: together exactly the rounded fraction."""
    exact = fraction * sizes
    counts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = round(fraction * int(sizes.sum())) - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def _draw(labels: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return sorted indices of `counts[label]` images of each class, drawn at random."""
    random = np.random.default_rng(seed)
    members = [random.permutation(np.flatnonzero(labels == label))[:count] for label, count in enumerate(counts)]
    drawn: NDArray[np.int64] = np.sort(np.concatenate(members))
    return drawn


def _subset(
    labels: NDArray[np.int64], classes: tuple[str, ...], *, fraction: float, seed: int, place: str
) -> NDArray[np.int64]:
    """Return sorted indices of a stratified fraction in which no class is empty."""
    sizes = np.bincount(labels, minlength=len(classes))
    counts = _quotas(sizes, fraction)
    for name, size, count in zip(classes, sizes, counts, strict=True):
        if count == 0:
            raise DataError(
                f"{place}: every class must keep an image, but --fraction {fraction} leaves none of the {size}"
                f" of class {name!r}. Raise --fraction."
            )
    return _draw(labels, counts, derive_seed(seed, "subset"))


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
    except RuntimeError as error:  # torchvision's word for a wrong MD5 sum
        damaged = _damaged_cifar10_file(data_dir) or data_dir / CIFAR10.base_folder
        raise DataError(
            f"{damaged}: must be CIFAR-10's, but its MD5 sum is not. Delete it and {CIFAR10.base_folder}. {ways_round}"
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
    """Return the first of CIFAR-10's files in `data_dir` that is there with a wrong MD5 sum."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity  # type: ignore[import-untyped,unused-ignore]

    batches = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    files = [(data_dir / CIFAR10.filename, CIFAR10.tgz_md5)]
    files += [(data_dir / CIFAR10.base_folder / name, md5) for name, md5 in batches]
    return next((path for path, md5 in files if path.is_file() and not check_integrity(path, md5)), None)


def _load_digits() -> Dataset:
    """Read scikit-learn's 1,797 digits (UCI, Alpaydin & Kaynak) of 8×8, and set a fixed fifth aside for testing."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    side = (DIGITS_SIDE, DIGITS_SIDE)
    enlarged = [np.asarray(Image.fromarray(image).resize(side, Image.Resampling.BILINEAR)) for image in grey]
    images = Images(np.repeat(np.stack(enlarged)[:, None], 3, axis=1), digits.target.astype(np.int64))
    train, test = split(images, fraction=0.2, seed=0)
    return Dataset("digits", tuple("0123456789"), train, test, 1.0)


def _load_folder(root: Path, *, fraction: float, seed: int, image_size: int) -> Dataset:
    """Choose among the file names, then decode what was chosen to one size for train and test."""
    try:
        files = _list_folder(root)
    except OSError as error:
        raise DataError(f"{error.filename}: must be readable: {error.strerror}.") from error
    classes = tuple(files["train"])
    chosen = []
    for part, by_class in files.items():
        paths = [path for found in by_class.values() for path in found]
        labels = np.repeat(np.arange(len(classes)), [len(found) for found in by_class.values()])
        kept = _subset(labels, classes, fraction=fraction, seed=seed, place=str(root / part))
        chosen.append(([paths[index] for index in kept], labels[kept]))
    # Between its limit and twice that, Pillow only warns of a decompression bomb. The pool's threads share the filter.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        sizes = set(pool.map(_upright_size, [path for paths, _ in chosen for path in paths]))
        size = _stored_size(sizes, image_size)
        train, test = (Images(_decode(paths, size, pool), labels) for paths, labels in chosen)
    return Dataset(root.resolve().name, classes, train, test, fraction)


def _list_folder(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Return the image files of each class of each part, all in order of name."""
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


def image_files(folder: Path, refuse: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the image files in and below a folder, hidden ones left out, in an order that all systems share.

    With `refuse`, which is told of each folder that cannot be read, the others are gone through all the same.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if refuse is None:
            raise
        refuse(error)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from image_files(Path(entry.path), refuse)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield Path(entry.path)


def _stored_size(sizes: set[tuple[int, int]], image_size: int) -> tuple[int, int]:
    """Return one (width, height) in pixels for all: theirs if they share a small one, else a square."""
    limit = round(image_size * 256 / 224)  # the margin that the ImageNet weights' transforms resize to, then crop
    largest = max(min(size) for size in sizes)
    if len(sizes) == 1 and largest <= limit:
        return next(iter(sizes))
    side = min(limit, largest)
    return side, side


def _decode(paths: list[Path], size: tuple[int, int], pool: ThreadPoolExecutor) -> NDArray[np.uint8]:
    pixels = np.empty((len(paths), 3, size[1], size[0]), np.uint8)
    for index, image in enumerate(pool.map(read_image, paths, repeat(size))):
        pixels[index] = image
    return pixels


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file, and tell whatever goes wrong with it as a DataError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: must be an image, but is none of {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        raise DataError(f"{path}: must be a whole, readable image, but: {error}") from error


def _upright_size(path: Path) -> tuple[int, int]:
    """Read (width, height) in pixels from a file's header, as they are after EXIF's rotation."""
    with _opened(path) as image:
        # PNG's own getexif decodes the whole image; TIFF's size is upright already.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
        return image.size[::-1] if turned else image.size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":
        # 16-bit grey, which Pillow would clip at 255
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its values are neither 8 nor 16 bits wide.")
        image = Image.fromarray(np.rint(grey / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
