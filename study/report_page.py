"""What a report's page is made of, as the template takes it: sections of texts, tables and pictures."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from study import figures

FIGURE = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?( to [\d.]+| ?%)?\*?|–")
"""A cell that holds a number, an interval, or that there is none."""
READ = "* Frozen blocks' outputs were read from the store, so that this is not the speed of training from the images."


@dataclass(frozen=True)
class Table:
    """Rows of texts under headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    sortable: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold figures, to be set flush right and sorted from the largest on."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [any(column) and all(FIGURE.fullmatch(cell) for cell in column) for column in columns]

    @property
    def note(self) -> str:
        """What its stars mean; empty where it has none."""
        return READ if any(cell.endswith("*") for row in self.rows for cell in row) else ""


@dataclass(frozen=True)
class Picture:
    """A PNG inside the page."""

    title: str
    data: str
    """In base64."""


@dataclass(frozen=True)
class Section:
    """A heading, and what stands under it."""

    title: str
    text: str = ""
    tables: Sequence[Table] = field(default_factory=list)
    pictures: Sequence[Picture] = field(default_factory=list)
    code: str = ""


@dataclass(frozen=True)
class View:
    """A study, as the page shows it."""

    name: str
    found: str
    """Its answer, in a sentence."""
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]


def draw_picture(title: str, figure: Figure) -> Picture:
    """Draw a figure into the page."""
    return Picture(title, base64.b64encode(figures.png(figure)).decode())
