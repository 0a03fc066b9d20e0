"""Draw values with their intervals on one axis, as SVG with a label in HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from study.charts.svg import Scale, number, percent, tag

LONGEST_NAME = 24
"""Largest length of a name in characters, so that name and text fit a phone."""
ROW = 46
"""Height of a row in pixels: its text, and below it the interval."""


@dataclass(frozen=True)
class Interval:
    """A value, its interval, and the text beside it."""

    name: str
    value: float
    low: float
    high: float
    text: str
    colour: str = "var(--after)"


def draw_intervals(rows: Sequence[Interval], label: str, *, zero: bool = False) -> Markup:
    """Draw each value as a dot on the line of its interval.

    Args:
        rows: values and their intervals, all in one unit; from top to bottom.
        label: text below the axis, with the unit.
        zero: whether the axis holds 0, drawn as a line: the values are differences.
    """
    ends = [end for row in rows for end in (row.low, row.high)] + [0.0] * zero
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    scale = Scale(min(ends) - margin, max(ends) + margin)
    bottom = ROW * len(rows) + 8
    parts = []
    for tick in scale.ticks():
        place = percent(scale.at(tick))
        parts.append(tag("line", x1=place, x2=place, y1=4, y2=bottom, class_="zero" if zero and not tick else "grid"))
        parts.append(tag("text", number(tick), x=place, y=bottom + 18, class_="tick middle"))
    for index, row in enumerate(rows):
        y = ROW * index + 34
        name = row.name if len(row.name) <= LONGEST_NAME else row.name[: LONGEST_NAME - 1] + "…"
        style = {"stroke": row.colour}
        low, high, at = (percent(scale.at(value)) for value in (row.low, row.high, row.value))
        parts.append(tag("text", f"{name}  ", tag("tspan", row.text, class_="strong"), x=0, y=y - 16, class_="halo"))
        parts.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_="reach", **style))
        for end in (low, high):
            parts.append(tag("line", x1=end, x2=end, y1=y - 6, y2=y + 6, class_="reach", **style))
        parts.append(tag("circle", cx=at, cy=y, r=6, fill=row.colour))
    told = "; ".join(f"{row.name} {row.text}" for row in rows)
    drawn = tag("svg", *parts, width="100%", height=bottom + 24, role="img", aria_label=f"{label}: {told}")
    return drawn + tag("p", label, class_="label", aria_hidden="true")  # unlike a text in SVG, it wraps on a phone
