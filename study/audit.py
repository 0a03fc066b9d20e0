"""Audit images before a study: `python -m study.audit DATA` counts them, and finds copies, leaks and wrong labels.

Every study does the same before it trains. Exit codes: 0 done, 1 images cannot be read, 2 usage, 130 interrupted.
"""

import argparse
import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path

from study.api.audits import audit_source
from study.command_line import Parser
from study.config.flags import images_of
from study.exit_codes import run_command, run_program


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
    from study.progress import WorkScreen
    from study.ticker import Screen, Ticker

    with contextlib.closing(Ticker(Screen())) as ticker:  # an interruption must leave no bar behind
        ticker.begin("reading the images")
        audit = audit_source(
            source,
            data_dir=options.data_dir,
            test_fraction=options.test_fraction,
            seed=options.seed,
            skip_broken=options.skip_broken,
            watch=WorkScreen(ticker),
        )
    print(audit.describe())
    return 0


if __name__ == "__main__":
    run_program(main)
