"""A trained classifier on new images: `python -m study.predict IMAGE … --model NAME`.

Images are read as a study reads those of a folder, and brought to the size that the classifier's own were stored in.
Exit codes: 0 done, 2 usage, 1 an image or the model cannot be read, 130 interrupted.
"""

import argparse
import io
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import DecompressionBombWarning

from study.config.paths import find_study
from study.data.image_files import EXTENSIONS, image_files, read_image
from study.errors import ConfigError, DataError
from study.exit_codes import run_command
from study.tracking.client import existing_store

if TYPE_CHECKING:
    from study.models.saved_model import SavedModel

BATCH = 64
"""Images that are read and classified at a time."""
TOP = 3
"""Classes that are told of an image."""
REGISTERED = "models:/"
"""How the names of MLflow's registry begin."""


@dataclass(frozen=True)
class Prediction:
    """What a classifier makes of one image."""

    image: Path
    top: list[tuple[str, float]]
    """The most probable classes, TOP at most, with their probabilities in [0, 1]; the first is the predicted one."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        top = [{"class": name, "probability": probability} for name, probability in self.top]
        return {"image": str(self.image), **top[0], "top": top}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")  # what MLflow and torch have to say of themselves is of no use here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # a file's name may be any bytes; they are printed as they are
    return run_command(lambda: _predict(options))


def _predict(options: argparse.Namespace) -> int:
    """Classify the images and print the predictions; exit code 1 if an image cannot be read."""
    refused = []

    def refuse(error: DataError) -> None:
        refused.append(error)
        print(f"study: {error}", file=sys.stderr)

    saved = open_model(options.model, options.tracking_uri)
    images = [image for path in options.images for image in list_images(path, refuse)]
    predictions = [*predict(saved, images, refuse)]
    if options.json:
        print(json.dumps([prediction.to_dict() for prediction in predictions], indent=1, ensure_ascii=False))
    elif predictions:
        print(format_table(predictions))
    return 1 if refused else 0


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m study.predict`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.predict", description="Classify images with a study's winner.", allow_abbrev=False
    )
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="a file, or a folder: all images in and below it, but hidden ones",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="of a study that was searched here ('latest' for the last), or registered: models:/NAME@champion",
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="of a registered model (default: mlruns/mlflow.db)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def open_model(name: str, tracking_uri: str | None) -> "SavedModel":
    """Load the model of the study of that name, or of that name in MLflow's registry.

    Args:
        name: of a study below ./mlruns, or `models:/<name>@<alias>`, or `models:/<name>/<version>`.
        tracking_uri: MLflow's store of a registered model; None for the one below ./mlruns.

    Raises:
        ConfigError: there is no such model.
        StudyError: the store does not answer, or the model cannot be read.
    """
    mlruns = Path("mlruns").absolute()
    if name.startswith(REGISTERED):
        from study.models.saved_model import load_model
        from study.tracking.registry import download_model

        uri = existing_store(tracking_uri, mlruns)
        with tempfile.TemporaryDirectory(prefix="study-") as folder:
            download_model(name, uri, Path(folder))
            return load_model(Path(folder))
    if tracking_uri is not None:
        raise ConfigError(f"--tracking-uri: goes with a registered model only, {REGISTERED}…, but got {name!r}.")
    study = find_study(name, mlruns)

    from study.models.saved_model import MODEL_DIRECTORY, load_model

    directory = study / MODEL_DIRECTORY
    if not directory.is_dir():
        raise ConfigError(f"--model {name}: must be a search that has its verdict, but {directory} is missing.")
    return load_model(directory)


def list_images(path: Path, refuse: Callable[[DataError], None]) -> list[Path]:
    """Return an image's path, or those of all images in and below a folder, in the order of their names.

    `refuse` is told of each folder that cannot be read, and of one that has no image.
    """
    if not path.is_dir():
        return [path]
    unreadable: list[OSError] = []
    images = [*image_files(path, unreadable.append)]
    for error in unreadable:
        refuse(DataError(f"{error.filename}: must be readable: {error.strerror}."))
    if not images and not unreadable:
        refuse(DataError(f"{path}: must hold an image, but has none ({', '.join(EXTENSIONS)})."))
    return images


def predict(saved: "SavedModel", images: Sequence[Path], refuse: Callable[[DataError], None]) -> Iterator[Prediction]:
    """Yield what the classifier makes of each image that can be read, in order; `refuse` is told of the others."""
    import torch

    classes = saved.card.classes
    width, height = saved.card.stored_size
    for start in range(0, len(images), BATCH):
        read: list[tuple[Path, NDArray[np.uint8]]] = []
        for path, pixels in _read(images[start : start + BATCH], (width, height)):
            if isinstance(pixels, DataError):
                refuse(pixels)
            else:
                read.append((path, pixels))
        if read:
            paths, arrays = zip(*read, strict=True)
            top = saved.probabilities(torch.from_numpy(np.stack(arrays))).topk(min(TOP, len(classes)))
            for path, indices, values in zip(paths, top.indices.tolist(), top.values.tolist(), strict=True):
                yield Prediction(path, [(classes[index], value) for index, value in zip(indices, values, strict=True)])


def format_table(predictions: Sequence[Prediction]) -> str:
    """Return a line an image under a heading: its path, class and probability, and the classes that come next."""
    rows = [("image", "class", "probability", "then")]
    for prediction in predictions:
        (best, value), *others = prediction.top
        then = " · ".join(f"{name} {100 * share:.1f} %" for name, share in others)
        rows.append((str(prediction.image), best, f"{100 * value:.1f} %", then))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{image:<{widths[0]}}  {best:<{widths[1]}}  {probability:>{widths[2]}}  {then}".rstrip()
        for image, best, probability, then in rows
    )


def _read(images: Sequence[Path], size: tuple[int, int]) -> list[tuple[Path, NDArray[np.uint8] | DataError]]:
    """Return the pixels (3, height, width) of each image, or why it cannot be read; decompression bombs cannot."""
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("error", DecompressionBombWarning)  # at Pillow's limit; it raises by itself at twice that
        return [*zip(images, pool.map(_try_to_read, images, repeat(size)), strict=True)]


def _try_to_read(path: Path, size: tuple[int, int]) -> NDArray[np.uint8] | DataError:
    try:
        return read_image(path, size)
    except DataError as error:
        return error


if __name__ == "__main__":
    sys.exit(main())
