"""Recognise image files by their content, and read them as upright RGB arrays of one size.

Knows no data set, no split and no model.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, features
from PIL.JpegImagePlugin import JpegImageFile

from study.environment import find_version
from study.errors import DataError

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".avif", ".heic", ".heif", ".jxl", ".jp2", ".dcm",
)  # fmt: skip
"""Endings of names that promise an image: such a file without an image in it is broken."""

FORMATS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",  # MPO too: its first image is a JPEG
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II\*\0|MM\0\*|MM\*\0|II\0\*|II\+\0|MM\0\+",
    "PPM": rb"P[1-6]\s+[#\d]",
    "AVIF": rb".{4}ftyp(?:avi[fs]|(?:mif1|msf1)(?:.{4})*?avif)",
    "HEIF": rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
}
"""Formats that Pillow may read, and how their files begin; readers that start other programs are left out."""

UNREAD = {
    "JPEG XL": rb"\xff\x0a|\0{3}\x0cJXL ",
    "JPEG 2000": rb"\0{3}\x0cjP  |\xff\x4f\xff\x51",
    "DICOM": rb".{128}DICM",
    "Photoshop": rb"8BPS",
}
"""Images that are not read, and how their files begin."""

OTHERS = {
    "a pointer of Git LFS, whose image is not here": rb"version https://git-lfs",
    "nothing": rb"\Z",
    "a web page": rb"\s*<(?:!doctype )?html",
    "a PDF": rb"%PDF",
    "an archive": rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!",
    "a video": rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3",
    "text": rb"[\t\n\r\x20-\x7e]+\Z",
}
"""What else a file may hold, for messages."""

_BEGINNINGS = [
    (kind, re.compile(pattern, re.DOTALL)) for kinds in (FORMATS, UNREAD, OTHERS) for kind, pattern in kinds.items()
]
_HEAD = 160
"""Bytes by which a file is recognised; DICOM's mark comes last."""

SYSTEM_NAMES = {
    "__macosx", "@eadir", "@__thumb", "#recycle", "@recycle", "$recycle.bin", "system volume information",
    "lost+found", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r",
}  # fmt: skip
"""Files and folders of macOS, Windows, Linux, Synology and QNAP, in lower case; hidden ones begin with a dot."""

HIDDEN, SPECIAL = "hidden or system file", "pipe, socket or device"
"""Reasons to leave a file out."""

FULL_GREY = (0, 65535)
"""16-bit grey values that become 0 and 255 if the images use most of their 16 bits."""

READER = f"1, Pillow {PIL.__version__}, JPEG {features.version('jpg')}, HEIF {find_version('pillow-heif')}"
"""Everything installed that decides how a file is decoded; the number changes with this module."""

PROGRESSIVE_FACTOR = 4
"""A progressive JPEG is held whole in memory, at 3 to 6 bytes a pixel, so it may have so many times Pillow's limit."""

# Programs that draw images write more into a PNG's text than Pillow's limit of 1 MB. This bounds memory all the same.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28


_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Header:
    """What the beginning of an image file says."""

    size: tuple[int, int]
    """(width, height) in pixels, upright."""
    deep_grey: bool
    """Whether it holds 16-bit grey values."""


def recognise(path: Path) -> str:
    """Return the kind of a file by its first bytes: a key of FORMATS, UNREAD or OTHERS, or "" for an unknown kind.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb", buffering=0) as file:
        head = file.read(_HEAD)
    return next((kind for kind, beginning in _BEGINNINGS if beginning.match(head)), "")


def list_files(folder: Path, refuse: Callable[[OSError], None] | None = None) -> Iterator[tuple[Path, str]]:
    """Yield the files in a folder and its subfolders, each with the reason to leave it out, which is "" for an image.

    The order is the same on every system. A hidden folder is yielded itself, without the files in it.

    A file is an image if it begins as one or its name ends as one; pipes, sockets and devices are not opened.

    Args:
        folder: folder to search.
        refuse: called with the error of each folder or file that cannot be read, instead of raising it.

    Raises:
        OSError: a folder cannot be read, and `refuse` is None.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        if refuse is None:
            raise
        refuse(error)
        return
    for entry in entries:
        path = Path(entry.path)
        if not is_hidden(entry.name) and path.is_dir():  # unlike the entry's, false for a link in a circle
            yield from list_files(path, refuse)
        else:
            yield path, reason_against(path)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or belongs to an operating system or a storage box."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def reason_against(path: Path) -> str:
    """Return the reason why a file is left out; "" for an image, and for a file that its name calls an image."""
    if is_hidden(path.name):
        return HIDDEN
    try:
        mode = os.stat(path).st_mode
    except OSError:  # reading it will say so if its name calls it an image
        return "" if path.name.lower().endswith(EXTENSIONS) else "link to nothing"
    if not stat.S_ISREG(mode):
        return SPECIAL
    if path.name.lower().endswith(EXTENSIONS):
        return ""
    try:
        kind = recognise(path)
    except OSError:
        return ""
    if kind in FORMATS or kind in UNREAD:
        return ""
    return f"no image ({path.suffix or 'without ending'})"


def read_header(path: Path) -> Header:
    """Read the size and the kind of an image file.

    Raises:
        DataError: the file is not a readable image.
    """
    with _opened(path) as image:
        # PNG's own getexif would decode the whole image. A TIFF's size is already upright.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
        return Header(image.size[::-1] if turned else image.size, image.mode[0] == "I")


def read_image(
    path: Path, size: tuple[int, int], fit: str = "crop", grey_range: Sequence[int] | None = None
) -> NDArray[np.uint8]:
    """Read the first frame of an image file: turned upright, as RGB, with white behind transparent pixels.

    Args:
        path: image file of any size and mode.
        size: (width, height) in pixels. Images of other sizes are resized (bilinear, antialiased).
        fit: what happens to images of another shape: crop cuts off what lies outside the centre, pad adds black bars,
            squash distorts.
        grey_range: 16-bit grey values that become 0 and 255; None for FULL_GREY.

    Returns:
        (3, height, width) uint8.

    Raises:
        DataError: the file is not a complete, readable image.
    """
    with _opened(path) as image:
        # Decoding a JPEG at 1/2, 1/4 or 1/8 takes a fraction of the time; twice the size is enough for the filter.
        if "progressive" in image.info:
            _check_pixels(image, PROGRESSIVE_FACTOR)
        image.draft(None, (2 * size[0], 2 * size[1]))
        _check_pixels(image)
        ImageOps.exif_transpose(image, in_place=True)  # else a copy even of an image that is upright
        fitted = _FITS[fit](_to_rgb(image, grey_range or FULL_GREY), size, Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


_FITS: dict[str, Callable[..., Image.Image]] = {"crop": ImageOps.fit, "pad": ImageOps.pad, "squash": Image.Image.resize}


def grey_range_of(paths: Sequence[Path], pool: ThreadPoolExecutor) -> tuple[int, int]:
    """Return the 16-bit grey values that become 0 and 255: the images' own range, or FULL_GREY.

    Cameras and scanners store 10 or 12 bits in 16, which would nearly be black. The range holds all but a ten
    thousandth of the values at each end, for single pixels are often broken. Images that use more than half of all
    values, or only one value, get FULL_GREY.

    Args:
        paths: images of which `Header.deep_grey` is true; broken ones are passed over.
        pool: threads that read them.
    """
    counts = np.zeros(FULL_GREY[1] + 1, np.int64)
    for more in pool.map(_count_greys, paths):
        counts += more
    below = counts.cumsum()
    if below[-1] == 0:
        return FULL_GREY
    low, high = (int(np.searchsorted(below, share * below[-1], side="right")) for share in (1e-4, 1 - 1e-4))
    return (low, high) if low < high < low + FULL_GREY[1] // 2 else FULL_GREY


def _count_greys(path: Path) -> NDArray[np.int64]:
    try:
        with _opened(path) as image:
            _check_pixels(image)
            values = np.asarray(image).ravel()
    except DataError:
        values = np.empty(0, np.int64)
    return np.bincount(values.clip(*FULL_GREY), minlength=FULL_GREY[1] + 1)


def stored_size(sizes: set[tuple[int, int]], image_size: int, fit: str = "crop") -> tuple[int, int]:
    """Return the (width, height) in pixels at which all images are stored: their own, if shared and small, or a square.

    Args:
        sizes: (width, height) of the images, upright.
        image_size: largest side in pixels that a network sees.
        fit: as in `read_image`. Images that are not cropped are stored as the square that the network sees.
    """
    if fit != "crop":
        side = min(image_size, max(max(size) for size in sizes))
        return side, side
    limit = round(image_size * 256 / 224)  # the ImageNet weights resize to this side before they crop
    largest = max(min(size) for size in sizes)
    if len(sizes) == 1 and largest <= limit:
        return next(iter(sizes))
    side = min(limit, largest)
    return side, side


def decode(
    paths: Sequence[Path],
    size: tuple[int, int],
    pool: ThreadPoolExecutor,
    fit: str = "crop",
    grey_range: Sequence[int] | None = None,
) -> tuple[NDArray[np.uint8], dict[int, DataError]]:
    """Read image files into one array (n, 3, height, width) uint8, in their order, and the errors by index."""
    pixels = np.zeros((len(paths), 3, size[1], size[0]), np.uint8)
    errors = {}
    for index, image in enumerate(
        pool.map(partial(try_to, read_image, size=size, fit=fit, grey_range=grey_range), paths)
    ):
        if isinstance(image, DataError):
            errors[index] = image
        else:
            pixels[index] = image
    return pixels, errors


def try_to(read: Callable[..., _Read], path: Path, **options: object) -> _Read | DataError:
    """Return what `read` makes of a file, or its error."""
    try:
        return read(path, **options)
    except DataError as error:
        return error


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file, and turn every error of its reader into a DataError."""
    try:
        with _open(path) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise almost any exception on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: must be a whole, readable image, but: {reason}") from error


def _open(path: Path) -> Image.Image:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: must be a file, but is a {'folder' if path.is_dir() else SPECIAL}.")
    kind = recognise(path)
    if kind in FORMATS:  # not through Image.open, which checks the size before a JPEG's decoder has reduced it
        return _reader(kind)(path)
    if kind in UNREAD:
        raise DataError(f"{path}: must be one of {', '.join(FORMATS)}, but is {kind}. Convert it.")
    raise DataError(f"{path}: must be an image ({', '.join(FORMATS)}), but holds {kind or 'something else'}.")


@cache
def _reader(kind: str) -> Callable[[Path], Image.Image]:
    """Return Pillow's class for a format.

    Raises:
        ValueError: a package is missing.
    """
    if kind == "JPEG":
        return JpegImageFile
    if kind == "HEIF":
        try:
            from pillow_heif import register_heif_opener  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise ValueError("HEIC images need another package. Run pip install pillow-heif.") from None
        register_heif_opener()
    Image.init()
    if kind not in Image.OPEN:
        raise ValueError(f"this Pillow does not read {kind}. Run pip install --upgrade pillow.")
    return Image.OPEN[kind][0]  # type: ignore[return-value]  # these classes take paths, too


def _check_pixels(image: Image.Image, factor: int = 1) -> None:
    """Refuse an image that takes too much memory: a decompression bomb, perhaps."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, image.width * image.height
    if limit is not None and pixels > factor * limit:
        raise ValueError(
            f"its {pixels:,} pixels are more than {factor * limit:,}: perhaps a decompression bomb. Make it smaller,"
            " or save it as a JPEG that is not progressive, which is decoded small."
        )


def _to_rgb(image: Image.Image, grey_range: Sequence[int]) -> Image.Image:
    if image.mode[0] in "IF":
        # 16-bit grey, which Pillow would clip at 255
        grey = np.asarray(image)
        low, high = grey_range
        if image.mode == "F" or grey.min() < 0 or grey.max() > FULL_GREY[1]:
            raise ValueError("its values are neither 8 nor 16 bits wide.")
        scaled = np.clip(grey.astype(np.int64) - low, 0, high - low) / ((high - low) / 255)
        image = Image.fromarray(np.rint(scaled).astype(np.uint8))
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
