"""Classify new images with a kept model: `python -m study.predict IMAGE … --model NAME`.

Images are read as a study reads those of a folder, and brought to the size that the classifier's own were stored in.
Exit codes: 0 done, 2 usage, 1 an image or the model cannot be read, 130 interrupted.
"""

import argparse
import io
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.api.predictions import Prediction, predict
from study.command_line import Parser
from study.config.paths import find_study
from study.data.image_files import list_files
from study.errors import ConfigError, DataError
from study.exit_codes import run_command, run_program
from study.files import scratch_directory
from study.tracking.client import existing_store

if TYPE_CHECKING:
    from study.models.saved_model import SavedModel

REGISTERED = "models:/"
"""Prefix of the names in MLflow's registry."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")  # warnings of MLflow and torch do not help here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # a file name may be any bytes; print them unchanged
    return run_command(lambda: _predict(options))


def _predict(options: argparse.Namespace) -> int:
    """Classify the images and print the predictions; exit code 1 if an image cannot be read."""
    refused = []

    def refuse(error: DataError) -> None:
        refused.append(error)
        print(f"study: {error}", file=sys.stderr)

    def leave_out(path: Path, reason: str) -> None:
        print(f"study: {path}: not predicted: {reason}.", file=sys.stderr)

    saved = open_model(options.model, options.tracking_uri)
    images = [image for path in options.images for image in list_images(path, refuse, leave_out)]
    predictions = [*predict(saved, images, refuse)]
    if options.json:
        print(json.dumps([prediction.to_dict() for prediction in predictions], indent=1, ensure_ascii=False))
    elif predictions:
        print(format_table(predictions))
    return 1 if refused else 0


def build_parser() -> Parser:
    """Build the parser of `python -m study.predict`."""
    parser = Parser(prog="python -m study.predict", description="Classify images with a model that a study kept.")
    parser.add_argument(
        "images",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="an image file, or a folder with images (subfolders included, hidden files excluded)",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="name of a study in this directory ('latest' for the last), NAME/vgg16 for one network of a baseline, or"
        " registered model: models:/NAME@champion",
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow's store of a registered model (default: mlruns/mlflow.db)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def open_model(name: str, tracking_uri: str | None) -> "SavedModel":
    """Load the kept model of a study, or a model of MLflow's registry.

    Args:
        name: name of a study below ./mlruns, or `<study>/<network>` for one of a baseline's models, or
            `models:/<name>@<alias>`, or `models:/<name>/<version>`.
        tracking_uri: MLflow's store of a registered model; None for the one below ./mlruns.

    Raises:
        ConfigError: no such model exists.
        StudyError: the store does not answer, or the model cannot be read.
    """
    mlruns = Path("mlruns").absolute()
    if name.startswith(REGISTERED):
        from study.models.saved_model import load_model
        from study.tracking.registry import download_model

        uri = existing_store(tracking_uri, mlruns)
        with scratch_directory() as folder:
            download_model(name, uri, folder)
            return load_model(folder)
    if tracking_uri is not None:
        raise ConfigError(f"--tracking-uri: needs a registered model, {REGISTERED}…, but got {name!r}.")
    from study.models.saved_model import KEPT, find_model, load_model

    study, _, which = name.partition("/")
    return load_model(find_model(find_study(study, mlruns, needs=KEPT), which))


def list_images(path: Path, refuse: Callable[[DataError], None], leave_out: Callable[[Path, str], None]) -> list[Path]:
    """Return the path of an image, or the paths of all images in a folder and its subfolders, sorted by name.

    Args:
        path: image file or folder.
        refuse: called with an error for each folder that cannot be read, and for one that has no image.
        leave_out: called with the path and the reason of each file that is no image, or is hidden.
    """
    if not path.is_dir():
        return [path]
    unreadable: list[OSError] = []
    images = []
    for file, reason in list_files(path, unreadable.append):
        if reason:
            leave_out(file, reason)
        else:
            images.append(file)
    for error in unreadable:
        refuse(DataError(f"{error.filename}: must be readable: {error.strerror}."))
    if not images and not unreadable:
        refuse(DataError(f"{path}: must hold an image, but has none."))
    return images


def format_table(predictions: Sequence[Prediction]) -> str:
    """Format predictions as a table: path, class, probability, and the next classes."""
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


if __name__ == "__main__":
    run_program(main)
