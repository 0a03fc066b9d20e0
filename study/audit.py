"""Audit images before a study: `python -m study.audit DATA` counts them, and finds copies, leaks and wrong labels.

Every study does the same before it trains. Exit codes: 0 done, 1 images cannot be read, 2 usage, 130 interrupted.
"""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.command_line import Parser
from study.config.flags import images_of
from study.config.paths import absolute, cache_directory
from study.exit_codes import run_command

if TYPE_CHECKING:
    from study.progress import WorkScreen

IMAGE_SIZE = 224
"""Side in pixels that the images are read for: that of most networks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")
    return run_command(lambda: _audit(options))


def build_parser() -> Parser:
    """Build the parser of `python -m study.audit`."""
    parser = Parser(
        prog="python -m study.audit",
        description="Count images, and find copies, test images among the training images, and copies of two classes.",
    )
    parser.add_argument("data", metavar="DATA", help="folder or CSV file of images, cifar10 or digits")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="directory for downloaded images")
    parser.add_argument("--test-fraction", type=float, metavar="F", help="as in study.run")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="as in study.run (default: 0)")
    parser.add_argument("--skip-broken", action="store_true", help="leave out image files that cannot be read")
    return parser


def _audit(options: argparse.Namespace) -> int:
    source = images_of(options.data)
    from rich.console import Console

    from study.progress import WorkScreen

    screen = WorkScreen(Console(highlight=False, markup=False, emoji=False))
    with contextlib.closing(screen):  # an interruption must leave no bar behind
        return _print_audit(options, source, screen)


def _print_audit(options: argparse.Namespace, source: str, screen: "WorkScreen") -> int:
    from study.data.audit import audit_images
    from study.data.pixel_store import PixelStore, default_directory
    from study.data.sources import load_dataset

    dataset = load_dataset(
        source,
        fraction=1.0,
        seed=options.seed,
        image_size=IMAGE_SIZE,
        data_dir=absolute(options.data_dir or cache_directory() / "data"),
        test_fraction=options.test_fraction,
        skip_broken=options.skip_broken,
        store=PixelStore(default_directory()),
        watch=screen,
    )
    height, width = dataset.train.pixels.shape[2:]
    print(f"data     {dataset.name}: read at {width}×{height} px")
    for name, text in dataset.found.describe(searched=True):
        print(f"{name:<8} {text}")
    audit = audit_images(dataset, screen)
    print("\n".join(["", *audit.tables(), ""]))
    for warning in audit.warnings():
        print(f"audit    {warning}")
    if not audit.groups:
        print("audit    no image is a copy of another")
    return 0


if __name__ == "__main__":
    sys.exit(main())
