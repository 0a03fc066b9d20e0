"""Render the report of one study, or of several side by side, as one HTML page that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from study.errors import RecordError
from study.files import replace_file

if TYPE_CHECKING:
    import jinja2

    from study.data.images import Dataset
    from study.results.record import Record

REPORT_FILE = "report.html"
COMPARISON_FILE = "comparison.html"


def write_report(record: "Record", dataset: "Dataset | None") -> Path:
    """Write the report of a study into the study's directory and return the path of the file.

    Args:
        record: record of the study.
        dataset: images of the study; None if they are missing, which the page then states.

    Raises:
        RecordError: the page cannot be written.
    """
    return write_page(record.directory / REPORT_FILE, render([(record, dataset)]))


def write_comparison(directories: Sequence[Path]) -> tuple[Path, str]:
    """Write the page that compares several studies into the directory of the first one.

    Args:
        directories: directories of the studies, at least two.

    Returns:
        The path of the page, and its main result in a sentence or two.

    Raises:
        RecordError: a study cannot be read, or the page cannot be written.
    """
    from study.data.pixel_store import PixelStore, default_directory
    from study.data.sources import find_images
    from study.report.compare_studies import compare_studies
    from study.results.record import Record

    store = PixelStore(default_directory())
    records = [Record.read(directory) for directory in directories]
    page = render([(record, find_images(record.manifest, store)) for record in records])
    return write_page(directories[0] / COMPARISON_FILE, page), compare_studies(records).found


def summary_html(record: "Record") -> str:
    """Return the first screen of a study's report as a part of an HTML page, with its style: for notebooks."""
    from study.report.summary import summarise

    return _environment().get_template("fragment.html.j2").render(summary=summarise(record))


def render(studies: Sequence[tuple["Record", "Dataset | None"]]) -> str:
    """Return the HTML page of one study, or of several studies one after the other with a comparison before them."""
    from study.report.compare_studies import compare_studies
    from study.report.study_page import describe

    views = [describe(record, dataset) for record, dataset in studies]
    if len(views) > 1:
        views.insert(0, compare_studies([record for record, _ in studies]))
    title = " · ".join(record.name for record, _ in studies)
    return _environment().get_template("report.html.j2").render(title=title, studies=views)


def _environment() -> "jinja2.Environment":
    import jinja2

    loader = jinja2.PackageLoader("study.report")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)


def write_page(file: Path, page: str) -> Path:
    """Write a page, whole or not at all, and return its path.

    Raises:
        RecordError: the page cannot be written.
    """
    try:
        with replace_file(file) as draft:
            draft.write_text(page, encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{file}: must be writable and have room, but got: {error.strerror}.") from None
    return file
