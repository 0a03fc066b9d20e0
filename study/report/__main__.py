"""Write the report of one or more studies as a self-contained HTML page: `python -m study.report NAME [NAME …]`.

This module reads records and, if they still exist, the images; `report_sections.py` builds the content of the page.
Exit codes: 0 done, 2 usage, 1 any other failure, 130 interrupted.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.config.paths import find_study
from study.errors import ConfigError, StudyError

if TYPE_CHECKING:
    pass

from study.data.sources import find_images
from study.report.render import COMPARISON_FILE, render, write_page, write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")  # Optuna warns that its plots are experimental
    try:
        mlruns = Path("mlruns").absolute()
        directories = [find_study(name, mlruns) for name in dict.fromkeys(options.studies)]
        from study.results.record import Record

        records = [Record.read(directory) for directory in directories]
        if len(records) == 1:
            file = write_report(records[0], find_images(records[0]))
        else:
            file = directories[0] / COMPARISON_FILE
            write_page(file, render([(record, find_images(record)) for record in records]))
        print(file)
        return 0
    except ConfigError as error:
        parser.exit(2, f"study: {error}\n")
    except StudyError as error:
        print(f"study: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("study: interrupted; the page was not changed.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m study.report`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.report",
        description="Write the report of a study, or compare several studies on one page.",
        allow_abbrev=False,
    )
    parser.add_argument("studies", nargs="+", metavar="NAME", help="name of a study, or 'latest' for the last one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
