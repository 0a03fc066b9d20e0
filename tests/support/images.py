"""Make small labelled images for tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from study.data.images import Images
from study.data.stored_pixels import StoredPixels, new_header, read_header


def make_images(count: int, classes: int = 3, side: int = 32, seed: int = 0) -> Images:
    """Return images of classes that can be told apart: each class has its own colour, under noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    colours = generator.integers(0, 256, (classes, 3, 1, 1))
    noise = generator.integers(-40, 41, (count, 3, side, side))
    pixels = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
    return Images(pixels, labels.astype(np.int64))


def write_image_folder(root: Path) -> Path:
    """Write PNG files of two classes, 8 training and 4 test images each, below `root`; return `root`."""
    for split, count in (("train", 16), ("test", 8)):
        images = make_images(count, classes=2)
        for index, (pixels, label) in enumerate(zip(images.pixels, images.labels, strict=True)):
            folder = root / split / ("cat", "dog")[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{index}.png")
    return root


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return random pixels (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def numbered(*sizes: int) -> Images:
    """Build 1×1 images, `sizes[c]` of class c, classes interleaved; the pixels tell the index."""
    labels = np.concatenate([np.full(size, label) for label, size in enumerate(sizes)]).astype(np.int64)
    labels = np.random.default_rng(1).permutation(labels)
    red = np.arange(len(labels)) // 256
    pixels = np.stack([red, np.arange(len(labels)) % 256, red], axis=1).astype(np.uint8)[:, :, None, None]
    return Images(pixels, labels)


def indices(images: Images) -> list[int]:
    """Return the indices that the pixels of `numbered` images tell."""
    return (images.pixels[:, 0, 0, 0].astype(int) * 256 + images.pixels[:, 1, 0, 0]).tolist()


def store_images(images: Images, file: Path) -> Images:
    """Write images into a file, and return them as they are in the file."""
    pixels = images.pixels[:]
    file.write_bytes(new_header({}) + pixels.tobytes())
    with open(file, "rb") as opened:
        mark = read_header(opened.fileno())["mark"]
    return Images(StoredPixels(file, mark, pixels.shape[2:], np.arange(len(images))), images.labels)
