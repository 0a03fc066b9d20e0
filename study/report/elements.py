"""Define the parts of a report page, as the templates read them: the first screen, and sections below it."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from markupsafe import Markup
from matplotlib.figure import Figure

from study.charts import figures

FIGURE = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?( to [\d.]+| ?%)?\*?|–")
"""Matches a table cell that holds a number, an interval, or a dash for a missing value."""
READ = "* Frozen blocks' outputs were read from the feature store, so this is not the speed of training from images."


MOST_ROWS = 40
"""Rows of a table that is shown whole: two screens of a phone."""


@dataclass(frozen=True)
class Table:
    """A table of text cells with column headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    sortable: bool = False
    marks: Sequence[str] = ()
    """Number of each row's trial, by which the page marks it together with charts; empty for other tables."""

    @cached_property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers; such columns are aligned right and first sorted in descending order."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [any(column) and all(FIGURE.fullmatch(cell) for cell in column) for column in columns]

    @property
    def tall(self) -> bool:
        """Whether the table has so many rows that the page lets it scroll in a box of its own."""
        return len(self.rows) > MOST_ROWS

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
class Chart:
    """A drawing in SVG."""

    title: str
    drawing: Markup
    full: bool = False
    """Whether it takes the whole width of the page."""
    scrolls: bool = False
    """Whether it keeps its size, and scrolls where it is wider than the page."""


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading and its content."""

    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=list)
    pictures: Sequence[Picture] = field(default_factory=list)
    code: str = ""
    charts: Sequence[Chart] = field(default_factory=list)


@dataclass(frozen=True)
class Tile:
    """One figure, written large."""

    label: str
    value: str
    note: str = ""
    kind: str = ""
    """before, after or gain: decides the colour."""


@dataclass(frozen=True)
class Recall:
    """Recall of one class by each side, in percent."""

    name: str
    images: int
    """Number of test images of the class."""
    values: Sequence[float]

    @property
    def change(self) -> str:
        """Gain of the last side over the first in percentage points; empty for one side."""
        return f"{self.values[-1] - self.values[0]:+.1f}" if len(self.values) > 1 else ""


@dataclass(frozen=True)
class Summary:
    """The content of the first screen."""

    name: str
    question: str
    headline: str
    text: str
    """What the headline leaves out, in sentences."""
    tiles: Sequence[Tile] = field(default_factory=list)
    drawing: Markup | None = None
    """The intervals as SVG."""
    recalls: Sequence[Recall] = field(default_factory=list)
    recall_title: str = ""
    sides: Sequence[str] = field(default_factory=list)
    """Names of the sides of `recalls`."""
    warnings: Sequence[str] = field(default_factory=list)
    facts: Sequence[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """The part of the page on one study, or the comparison of several studies."""

    name: str
    found: str
    """Main result, in a sentence or two."""
    sections: Sequence[Section]
    summary: Summary
    """Content of the first screen."""


def draw_picture(title: str, figure: Figure) -> Picture:
    """Return a figure as a picture of the page; `title` becomes its alternative text."""
    return embed_picture(title, figures.png(figure))


def embed_picture(title: str, png: bytes) -> Picture:
    """Return a PNG file as a picture of the page; `title` becomes its alternative text."""
    return Picture(title, base64.b64encode(png).decode())
