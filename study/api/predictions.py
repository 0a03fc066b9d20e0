"""Classify images with a kept model; they are read as a study reads those of a folder."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from study.api.inputs import save_png, to_image
from study.data.image_files import read_image, try_to
from study.errors import DataError
from study.files import scratch_directory

if TYPE_CHECKING:
    from study.models.saved_model import SavedModel

BATCH = 64
"""Number of images that are read and classified together."""
TOP = 3
"""Number of classes that are named for an image."""
Picture = str | Path | Image.Image | NDArray[np.uint8]
"""Path of an image file, a PIL image, or an array (height, width, 3) or (height, width) uint8."""


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image."""

    image: Path
    """File of the image, or its position among the given ones if it is none."""
    top: list[tuple[str, float]]
    """The most probable classes, at most TOP, with their probabilities in [0, 1]; the first is the predicted class."""

    @property
    def label(self) -> str:
        """Predicted class."""
        return self.top[0][0]

    @property
    def probability(self) -> float:
        """Probability of the predicted class, in [0, 1]."""
        return self.top[0][1]

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        top = [{"class": name, "probability": probability} for name, probability in self.top]
        return {"image": str(self.image), **top[0], "top": top}


def predict(saved: "SavedModel", images: Sequence[Path], refuse: Callable[[DataError], None]) -> Iterator[Prediction]:
    """Yield the prediction for each readable image, in order; call `refuse` with the error of each other image."""
    import torch

    classes = saved.card.classes
    width, height = saved.card.stored_size
    read_one = partial(
        try_to, read_image, size=(width, height), fit=saved.card.recipe.fit, grey_range=saved.card.found.grey_range
    )
    for start in range(0, len(images), BATCH):
        read: list[tuple[Path, NDArray[np.uint8]]] = []
        batch = images[start : start + BATCH]
        with ThreadPoolExecutor() as pool:
            arrays = [*pool.map(read_one, batch)]
        for path, pixels in zip(batch, arrays, strict=True):
            if isinstance(pixels, DataError):
                refuse(pixels)
            else:
                read.append((path, pixels))
        if read:
            paths, stack = zip(*read, strict=True)
            top = saved.probabilities(torch.from_numpy(np.stack(stack))).topk(min(TOP, len(classes)))
            for path, indices, values in zip(paths, top.indices.tolist(), top.values.tolist(), strict=True):
                yield Prediction(path, [(classes[index], value) for index, value in zip(indices, values, strict=True)])


def predict_pictures(saved: "SavedModel", images: Picture | Iterable[Picture]) -> list[Prediction]:
    """Return the prediction for each image, in order; those in memory are read as if they came from a file.

    Raises:
        DataError: images cannot be read; the message names all of them, one a line.
    """
    given: Any = images
    try:
        pictures = [*given] if _are_several(images) else [given]
    except TypeError:
        raise DataError(f"images: must be paths, PIL images or arrays, but got {type(given).__name__}.") from None
    errors: list[DataError] = []
    with scratch_directory() as scratch:
        names: dict[Path, Path] = {}
        for position, picture in enumerate(pictures):
            if isinstance(picture, str | os.PathLike):
                file = shown = Path(picture)
            else:
                file, shown = scratch / f"{position}.png", Path(f"image {position}")
                save_png(to_image(picture, str(shown)), file)
            names[file] = shown
        found = [*predict(saved, [*names], errors.append)]
        if errors:
            raise DataError("\n".join(map(str, errors)))
        by_file = {one.image: replace(one, image=names[one.image]) for one in found}
        return [by_file[Path(p) if isinstance(p, str | os.PathLike) else scratch / f"{at}.png"]
                for at, p in enumerate(pictures)]  # fmt: skip


def _are_several(images: Any) -> bool:
    return not isinstance(images, str | os.PathLike | Image.Image) and not (
        isinstance(images, np.ndarray) and images.ndim < 4
    )
