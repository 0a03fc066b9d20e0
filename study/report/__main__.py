"""Write the report of one or more studies as a self-contained HTML page: `python -m study.report NAME [NAME …]`.

This module reads records and, if they still exist, the images; `report_sections.py` builds the content of the page.
Exit codes: 0 done, 2 usage, 1 any other failure, 130 interrupted.
"""

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from study.command_line import Parser
from study.config.paths import find_study
from study.exit_codes import run_command, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")  # Optuna warns that its plots are experimental
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home directory that it cannot write
    return run_command(
        lambda: _write(dict.fromkeys(options.studies)), interrupted="interrupted; the page was not changed."
    )


def build_parser() -> Parser:
    """Build the parser of `python -m study.report`."""
    parser = Parser(
        prog="python -m study.report",
        description="Write the report of a study, or compare several studies on one page.",
    )
    parser.add_argument("studies", nargs="+", metavar="NAME", help="name of a study, or 'latest' for the last one")
    return parser


def _write(names: Iterable[str]) -> int:
    """Write the page of one study, or of several, and print its path."""
    directories = [find_study(name, Path("mlruns").absolute()) for name in names]
    from study.data.pixel_store import PixelStore, default_directory
    from study.data.sources import find_images
    from study.report.render import write_comparison, write_report
    from study.results.record import Record

    if len(directories) > 1:
        file, _ = write_comparison(directories)
    else:
        record = Record.read(directories[0])
        file = write_report(record, find_images(record.manifest, PixelStore(default_directory())))
    print(file)
    return 0


if __name__ == "__main__":
    run_program(main)
