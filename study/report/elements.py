"""Define the parts of a report page, as the template reads them: sections with text, tables, pictures and code."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from study.report import figures

FIGURE = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?( to [\d.]+| ?%)?\*?|–")
"""Matches a table cell that holds a number, an interval, or a dash for a missing value."""
READ = "* Frozen blocks' outputs were read from the feature store, so this is not the speed of training from images."


@dataclass(frozen=True)
class Table:
    """A table of text cells with column headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    sortable: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers; such columns are aligned right and first sorted in descending order."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [any(column) and all(FIGURE.fullmatch(cell) for cell in column) for column in columns]

    @property
    def note(self) -> str:
        """Explanation of the stars in the cells; empty if no cell has a star."""
        return READ if any(cell.endswith("*") for row in self.rows for cell in row) else ""


@dataclass(frozen=True)
class Picture:
    """A PNG image embedded in the page."""

    title: str
    data: str
    """PNG file, encoded in base64."""


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading and its content."""

    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=list)
    pictures: Sequence[Picture] = field(default_factory=list)
    code: str = ""


@dataclass(frozen=True)
class View:
    """The part of the page on one study, or the comparison of several studies."""

    name: str
    found: str
    """Main result, in a sentence or two."""
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def draw_picture(title: str, figure: Figure) -> Picture:
    """Return a figure as a picture of the page; `title` becomes its alternative text."""
    return embed_picture(title, figures.png(figure))


def embed_picture(title: str, png: bytes) -> Picture:
    """Return a PNG file as a picture of the page; `title` becomes its alternative text."""
    return Picture(title, base64.b64encode(png).decode())
