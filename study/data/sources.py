"""Load a data set: CIFAR-10, scikit-learn's digits or a folder, as uint8 arrays with labels.

Normalises nothing and augments nothing. torchvision and scikit-learn are imported only by the source that needs them.
"""

import http.client
import socket
import unicodedata
import urllib.error
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, NoReturn

import numpy as np
from PIL import Image

from study.config.manifest import Found, Manifest
from study.data.audit import audit_images, drop_leaks
from study.data.decoding import Form, Unwatched, Watch, decode_files, identify_files, read_headers
from study.data.image_files import FULL_GREY, Header, grey_range_of, stored_size
from study.data.images import Dataset, Images, Pixels
from study.data.layouts import SHOWN, is_table, list_source
from study.data.pixel_store import PixelStore
from study.data.rows import Rows
from study.data.splits import draw_held_out, split, subset
from study.data.stored_pixels import StoredPixels
from study.errors import ConfigError, DataError, StudyError
from study.seeding import derive_seed

PARTS = ("train", "val", "test")

NETWORK_TIMEOUT_S = 15
"""Seconds for one connection; a server has at most two addresses, IPv6 and IPv4."""

TEST_FRACTION = 0.2
"""Share of each class that is held out as test images if a folder or a CSV file gives none."""

DIGITS_SIDE = 32
"""Side in pixels to which the digits are enlarged: CIFAR's, since 8 pixels are too few for AutoAugment."""


def load_dataset(
    source: str,
    *,
    fraction: float,
    seed: int,
    image_size: int,
    data_dir: Path,
    fit: str = "crop",
    test_fraction: float | None = None,
    skip_broken: bool = False,
    store: PixelStore | None = None,
    watch: Watch | None = None,
) -> Dataset:
    """Load `cifar10`, `digits`, a folder or a CSV file, and keep a stratified fraction of the images of each split.

    Args:
        source: `cifar10`, `digits`, a folder (see docs/own-images.md), or a CSV file with the columns path and label.
        fraction: share of the images of each class to keep, in (0, 1]; what is kept stays in the source's order.
        seed: seed of the subset, and of the test images where the source has none.
        image_size: side in pixels that the network sees; it bounds the size at which a folder's images are stored.
        data_dir: directory of CIFAR-10, to which it is downloaded if it is missing.
        fit: what happens to a folder's images that have another shape than they are stored in: crop, pad or squash.
        test_fraction: share of each class to hold out as test images, in (0, 1); None for TEST_FRACTION, and for a
            source that has test images.
        skip_broken: leave broken files out, instead of raising an error.
        store: store of the decoded images of a folder or a CSV file, unless they are few; None for images in memory.
        watch: receiver of the cost and the progress of decoding; None for nobody.

    Raises:
        ConfigError: the fraction is out of range, or the source has test images and gets a test fraction.
        DataError: images are missing, unreadable or too few.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"--fraction: must be in (0, 1], but got {fraction}.")
    if source in ("cifar10", "digits"):
        _refuse_test_fraction(source, test_fraction)
        whole = _load_cifar10(data_dir) if source == "cifar10" else _load_digits()
        train, test = (
            images.take(subset(images.labels, whole.classes, fraction=fraction, seed=seed, place=f"{source}/{part}"))
            for part, images in (("train", whole.train), ("test", whole.test))
        )
        return Dataset(source, whole.classes, train, test, fraction)
    path = Path(source)
    if not (path.is_dir() or (path.is_file() and is_table(path))):
        raise DataError(f"{source}: must be a folder of images, or a CSV file that lists them, but there is none.")
    return _load_files(
        path,
        fraction=fraction,
        seed=seed,
        image_size=image_size,
        fit=fit,
        test_fraction=test_fraction,
        skip_broken=skip_broken,
        store=store,
        watch=watch or Unwatched(),
    )


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


def _load_files(
    source: Path,
    *,
    fraction: float,
    seed: int,
    image_size: int,
    fit: str,
    test_fraction: float | None,
    skip_broken: bool,
    store: PixelStore | None,
    watch: Watch,
) -> Dataset:
    """Choose files by name, then decode the chosen ones to one size for all splits."""
    listing = list_source(source)
    classes = tuple(sorted({label for label, _ in listing.rows.kinds()}))
    by_split = {part: listing.rows.take(listing.rows.having(part)) for part in PARTS}
    held_in_groups = None
    if len(by_split["test"]):
        _refuse_test_fraction(source, test_fraction)
    else:
        test_fraction = test_fraction or TEST_FRACTION
        given = listing.rows.take(listing.rows.having("", "train"))
        groups = given.groups()
        by_split |= _draw_test(given, classes, groups, fraction=test_fraction, seed=seed)
        held_in_groups = len(by_split["test"]) / len(given) if any(groups) else None
    chosen = Rows()
    for part, rows in by_split.items():
        if len(rows):
            kept = subset(rows.labels(classes), classes, fraction=fraction, seed=seed, place=str(source / part))
            chosen += rows.take(kept, split=part)
    decoded = _decode(source, chosen, image_size=image_size, fit=fit, skip_broken=skip_broken, store=store, watch=watch)
    parts = {}
    for part in PARTS:
        places = decoded.rows.having(part)
        if len(by_split[part]):
            labels = decoded.rows.labels(classes)[places]
            if empty := [name for label, name in enumerate(classes) if label not in labels]:
                raise DataError(f"{source}: every class must have a whole image in {part}, but {empty[0]!r} has none.")
            parts[part] = Images(_cut(decoded.pixels, int(places[0]), int(places[-1]) + 1), labels)
    found = Found(
        layout=listing.layout,
        validation="val" in parts,
        test_fraction=test_fraction,
        left_out=dict(+Counter({**listing.left_out, "broken": decoded.broken})),
        skip_broken=skip_broken,
        grey_range=None if decoded.grey_range == FULL_GREY else [*decoded.grey_range],
        cropped=median(1 - min(size) / max(size) for size in decoded.sizes) if fit == "crop" else 0.0,
        sizes=_describe_sizes(decoded.sizes),
        held_in_groups=held_in_groups,
    )
    name = source.resolve().name if source.is_dir() else f"{source.resolve().parent.name}-{source.stem}"
    return Dataset(
        unicodedata.normalize("NFC", name),
        classes,
        parts["train"],
        parts["test"],
        fraction,
        validation=parts.get("val"),
        rows=decoded.rows,
        found=found,
    )


class _Decoded(NamedTuple):
    """What the files of a data set hold."""

    rows: Rows
    """Rows whose images could be read."""
    pixels: Pixels
    """Their pixels, in the same order."""
    broken: int
    """Number of the other rows."""
    sizes: list[tuple[int, int]]
    """Size of each readable file's image: width and height in pixels."""
    grey_range: tuple[int, int]
    """Values of deep grey that are black and white."""


def _decode(
    source: Path,
    chosen: Rows,
    *,
    image_size: int,
    fit: str,
    skip_broken: bool,
    store: PixelStore | None,
    watch: Watch,
) -> _Decoded:
    """Decode the chosen files to one size; the other arguments and the errors are those of `load_dataset`."""
    with ThreadPoolExecutor() as pool:
        files = identify_files(source, [row.path for row in chosen], pool)
        headers = read_headers(files, pool, store)
        broken = [header for header in headers if isinstance(header, DataError)]
        readable = [(at, header) for at, header in enumerate(headers) if isinstance(header, Header)]
        if not readable:
            _refuse_broken(broken)
        deep = [chosen[at].path for at, header in readable if header.deep_grey and chosen[at].split == "train"]
        grey_range = grey_range_of(deep, pool) if deep else FULL_GREY
        sizes = [header.size for _, header in readable]
        form = Form(stored_size(set(sizes), image_size, fit), fit, grey_range)
        rows = chosen.take(np.array([at for at, _ in readable], np.int64))
        pixels, errors = decode_files(files.take([at for at, _ in readable]), form, pool, store=store, watch=watch)
    broken += errors.values()
    if broken and not skip_broken:
        _refuse_broken(broken)
    if errors:
        rows = rows.take(np.delete(np.arange(len(rows)), [*errors]))
    return _Decoded(rows, pixels, len(broken), sizes, grey_range)


def _cut(pixels: Pixels, start: int, stop: int) -> Pixels:
    """Return the images from `start` up to `stop` without reading or copying any."""
    return pixels.take(np.arange(start, stop)) if isinstance(pixels, StoredPixels) else pixels[start:stop]


def _draw_test(
    rows: Rows, classes: tuple[str, ...], groups: list[str], *, fraction: float, seed: int
) -> dict[str, Rows]:
    """Split rows into training and test images, stratified and with each group on one side."""
    held_out = draw_held_out(
        rows.labels(classes),
        classes,
        fraction=fraction,
        seed=derive_seed(seed, "test"),
        groups=groups,
        what="test",
    )
    return {"train": rows.take(np.delete(np.arange(len(rows)), held_out)), "test": rows.take(held_out)}


def _refuse_test_fraction(source: object, test_fraction: float | None) -> None:
    if test_fraction is not None:
        raise ConfigError(
            f"--test-fraction: must be left out, since {source} has test images, but got {test_fraction}."
        )


def _refuse_broken(errors: Sequence[DataError]) -> NoReturn:
    """Raise one error for all broken files; the first ones are named with their reasons."""
    lines = [str(error) for error in errors[:SHOWN]]
    if len(errors) > SHOWN:
        lines.append(f"… and {len(errors) - SHOWN:,} more.")
    files = "1 file is broken. Mend it" if len(errors) == 1 else f"{len(errors):,} files are broken. Mend them"
    lines.append(f"{files}, or leave what is broken out with --skip-broken.")
    raise DataError("\n".join(lines))


def _describe_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Describe the (width, height) of image files: the smallest, the most frequent and the largest, by area."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    (usual, count), *others = Counter(sizes).most_common()
    text = f"{usual[0]:,}×{usual[1]:,} px"
    if not others:
        return f"all {text}"
    (width, height), (most_width, most_height) = ordered[0], ordered[-1]
    return f"{width:,}×{height:,} to {most_width:,}×{most_height:,} px; {count / len(sizes):.0%} are {text}"


def load_again(
    source: str,
    *,
    found: Found,
    fraction: float,
    seed: int,
    image_size: int,
    data_dir: Path,
    fit: str,
    store: PixelStore | None = None,
    watch: Watch | None = None,
) -> Dataset:
    """Load a data set as a study used it: with the test images, broken files and leaks handled as it `found` them.

    The other arguments and the errors are those of `load_dataset`.
    """
    dataset = load_dataset(
        source,
        fraction=fraction,
        seed=seed,
        image_size=image_size,
        data_dir=data_dir,
        fit=fit,
        test_fraction=found.test_fraction,
        skip_broken=found.skip_broken,
        store=store,
        watch=watch,
    )
    return drop_leaks(dataset, audit_images(dataset, watch)) if found.leaks == "drop" else dataset


def find_images(manifest: Manifest, store: PixelStore | None = None) -> "Dataset | None":
    """Return the images of a study; None if they are missing or have changed since. Download nothing."""
    if manifest.source == "cifar10" and not _has_cifar10(Path(manifest.data_dir)):
        return None
    try:
        dataset = load_again(
            manifest.source,
            fraction=manifest.fraction,
            seed=manifest.seed,
            image_size=manifest.image_size,
            data_dir=Path(manifest.data_dir),
            fit=manifest.design.fit,
            found=manifest.found,
            store=store,
        )
    except StudyError:
        return None
    return dataset if dataset.has_fingerprint(manifest.data_fingerprint) else None


def _has_cifar10(data_dir: Path) -> bool:
    """Return whether `data_dir` holds the complete CIFAR-10, so that `load_dataset` does not download it."""
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped,unused-ignore]

    try:
        CIFAR10(data_dir, train=False, download=False)
    except (RuntimeError, OSError):  # torchvision's errors for missing, damaged and unreadable files
        return False
    return True
