"""What a study has found, as one page that needs nothing else: `python -m study.report NAME [NAME …]`.

Reads records and, where they still are, their images; what is on the page is made in `report_sections.py`.
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

from study.config import find_study
from study.errors import ConfigError, RecordError, StudyError

if TYPE_CHECKING:
    from study.data import Dataset
    from study.record import Record

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")  # of Optuna's experimental plots
    try:
        mlruns = Path("mlruns").absolute()
        directories = [find_study(name, mlruns) for name in dict.fromkeys(options.studies)]
        from study.record import Record

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
        print("study: interrupted; the page is as it was before.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `python -m study.report`."""
    parser = argparse.ArgumentParser(
        prog="python -m study.report",
        description="Write the report of a study anew, or put several side by side on one page.",
        allow_abbrev=False,
    )
    parser.add_argument("studies", nargs="+", metavar="NAME", help="of a study; 'latest' for the last")
    return parser


def write_report(record: "Record", dataset: "Dataset | None") -> Path:
    """Write the study's page into its directory and return its path.

    Args:
        record: of the study.
        dataset: its images; None where they are not there any more, which the page says.

    Raises:
        RecordError: the page cannot be written.
    """
    return _write(record.directory / REPORT_FILE, render([(record, dataset)]))


def render(studies: Sequence[tuple["Record", "Dataset | None"]]) -> str:
    """Return the page of one study, or of several one after the other, as HTML."""
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


def find_images(record: "Record") -> "Dataset | None":
    """Return the images that a study was run on; None where they are not there, or are others now.

    A page is no reason to download anything.
    """
    from study.data import fingerprint, load_dataset

    told = record.manifest
    if told["source"] == "cifar10" and not _has_cifar10(Path(told["data_dir"])):
        return None
    try:
        dataset = load_dataset(
            told["source"],
            fraction=told["fraction"],
            seed=told["seed"],
            image_size=told["image_size"],
            data_dir=Path(told["data_dir"]),
        )
    except StudyError:
        return None
    return dataset if fingerprint(dataset.train, dataset.test) == told["data_fingerprint"] else None


def _has_cifar10(data_dir: Path) -> bool:
    """Tell whether CIFAR-10 lies there whole, so that `load_dataset` does not fetch it."""
    from torchvision.datasets import CIFAR10  # type: ignore[import-untyped,unused-ignore]

    try:
        CIFAR10(data_dir, train=False, download=False)
    except (RuntimeError, OSError):  # torchvision's word for a missing or damaged file, or one that may not be read
        return False
    return True


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
