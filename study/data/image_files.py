"""Find image files, and read them as upright RGB arrays of one size.

Knows no data set, no split and no model.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from study.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Formats that Pillow may read, whatever the file's name; readers that start other programs are left out."""


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the first frame of an image file: turned upright, as RGB, with white behind transparent pixels.

    Args:
        path: image file of any size and mode; 16-bit grey is scaled to 8 bits.
        size: (width, height) in pixels. Images of other sizes are resized to cover this size (bilinear, antialiased)
            and centre-cropped.

    Returns:
        (3, height, width) uint8.

    Raises:
        DataError: the file is not a complete, readable image.
    """
    with _opened(path) as image:
        # Decoding a JPEG at 1/2, 1/4 or 1/8 takes a fraction of the time; twice the size is enough for the filter.
        image.draft(None, (2 * size[0], 2 * size[1]))
        fitted = ImageOps.fit(_to_rgb(ImageOps.exif_transpose(image)), size, Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))


def image_files(folder: Path, refuse: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the image files in a folder and its subfolders, without hidden ones, in the same order on every system.

    Args:
        folder: folder to search.
        refuse: called with the error of each folder that cannot be read, instead of raising it.

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
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from image_files(Path(entry.path), refuse)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield Path(entry.path)


def stored_size(sizes: set[tuple[int, int]], image_size: int) -> tuple[int, int]:
    """Return the (width, height) in pixels at which all images are stored: their own, if shared and small, or a square.

    Args:
        sizes: (width, height) of the images, upright.
        image_size: largest side in pixels that a network sees.
    """
    limit = round(image_size * 256 / 224)  # the ImageNet weights resize to this side before they crop
    largest = max(min(size) for size in sizes)
    if len(sizes) == 1 and largest <= limit:
        return next(iter(sizes))
    side = min(limit, largest)
    return side, side


def decode(paths: list[Path], size: tuple[int, int], pool: ThreadPoolExecutor) -> NDArray[np.uint8]:
    """Read image files into one array (n, 3, height, width) uint8, in their order."""
    pixels = np.empty((len(paths), 3, size[1], size[0]), np.uint8)
    for index, image in enumerate(pool.map(read_image, paths, repeat(size))):
        pixels[index] = image
    return pixels


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file, and turn every error of its reader into a DataError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: must be an image, but is none of {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow's readers raise almost any exception on damaged files
        raise DataError(f"{path}: must be a whole, readable image, but: {error}") from error


def upright_size(path: Path) -> tuple[int, int]:
    """Read the (width, height) in pixels of an image file's header, after its EXIF rotation.

    Raises:
        DataError: the file is not a readable image.
    """
    with _opened(path) as image:
        # PNG's own getexif would decode the whole image. A TIFF's size is already upright.
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
