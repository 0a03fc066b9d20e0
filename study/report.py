"""Write the report of one or more studies as a self-contained HTML page: `python -m study.report NAME [NAME …]`.

This module reads records and, if they still exist, the images; `report_sections.py` builds the content of the page.
Exit codes: 0 done, 2 usage, 1 any other failure, 130 interrupted.
"""

import argparse
import os
import secrets
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.config.paths import find_study
from study.errors import ConfigError, RecordError, StudyError

if TYPE_CHECKING:
    from study.data.images import Dataset
    from study.results.record import Record

from study.data.sources import find_images

REPORT_FILE = "report.html"

COMPARISON_FILE = "comparison.html"


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
            _write(file, render([(record, find_images(record)) for record in records]))
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


def write_report(record: "Record", dataset: "Dataset | None") -> Path:
    """Write the report of a study into the study's directory and return the path of the file.

    Args:
        record: record of the study.
        dataset: images of the study; None if they are missing, which the page then states.

    Raises:
        RecordError: the page cannot be written.
    """
    return _write(record.directory / REPORT_FILE, render([(record, dataset)]))


def render(studies: Sequence[tuple["Record", "Dataset | None"]]) -> str:
    """Return the HTML page of one study, or of several studies one after the other with a comparison before them."""
    import jinja2

    from study.report_comparison import compare_studies
    from study.report_sections import describe

    views = [describe(record, dataset) for record, dataset in studies]
    if len(views) > 1:
        views.insert(0, compare_studies([record for record, _ in studies]))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("study"), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    title = " · ".join(record.name for record, _ in studies)
    return environment.get_template("report.html.j2").render(title=title, studies=views)


def _write(file: Path, page: str) -> Path:
    partial = file.with_suffix(f".{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise RecordError(f"{file}: must be writable and have room, but got: {error.strerror}.") from None
    finally:
        partial.unlink(missing_ok=True)
    return file


if __name__ == "__main__":
    sys.exit(main())
