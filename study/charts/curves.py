"""Draw curves and points over one axis or two, as SVG, with a legend in HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from study.charts.svg import Scale, number, percent, series, spread, tag

HEIGHT = 240
"""Height of the plotted area in pixels."""
ROOM = 0.05
"""Share of an axis that stays free at both ends of a cloud of dots."""
MOST_MARKED = 40
"""Largest number of points of a curve that get a mark each."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """One trial in a plot."""

    trial: str
    """Number of the trial, by which plots mark it together."""
    x: float
    y: float
    tip: str
    done: bool
    """Whether the trial is complete; others are drawn hollow."""


def draw_curves(curves: Mapping[str, Points], x: str, y: str) -> Markup:
    """Draw one curve for each name, and a legend below.

    Args:
        curves: points (x, y) by name.
        x: label of the horizontal axis.
        y: label of the vertical axis.
    """
    points = [point for line in curves.values() for point in line]
    if not points:
        return Markup("")
    across = Scale(min(one[0] for one in points), max(one[0] for one in points))
    up = spread([one[1] for one in points], room=ROOM)
    parts = [frame(across, up, x, y, whole=True)]
    parts += [path(line, across, up, series(index)) for index, line in enumerate(curves.values())]
    for index, (name, line) in enumerate(curves.items()):
        for place, value in line if len(line) <= MOST_MARKED else line[-1:]:
            where = {"cx": percent(across.at(place)), "cy": height_of(up, value)}
            tip = f"{name}: {number(value)} at {x} {number(place)}"
            parts.append(tag("circle", r=4, fill=series(index), data_tip=tip, **where))
    legend = [
        tag("li", tag("i", style=f"background:{series(index)}", class_="key"), name)
        for index, name in enumerate(curves)
    ]
    return plot(parts, f"{y} by {x}: {', '.join(curves)}") + tag("ul", *legend, class_="legend")


def draw_dots(dots: Sequence[Dot], x: str, y: str, *, log: bool = False, best: Points = ()) -> Markup:
    """Draw one dot for each trial.

    Args:
        dots: trials, at least one.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        log: whether the horizontal axis is logarithmic.
        best: steps of the best value so far; drawn as a line.
    """
    across = spread([dot.x for dot in dots], log=log, room=ROOM)
    up = spread([dot.y for dot in dots], room=ROOM)
    parts = [frame(across, up, x, y)]
    if best:
        corners = [best[0]]
        for before, after in pairwise(best):
            corners += [(after[0], before[1]), after]
        parts.append(path(corners, across, up, "var(--after)"))
    for dot in dots:
        style = {"fill": "var(--series-1)"} if dot.done else {"fill": "var(--page)", "stroke": "var(--before)"}
        where = {"cx": percent(across.at(dot.x)), "cy": height_of(up, dot.y)}
        parts.append(tag("circle", r=4.5, data_tip=dot.tip, data_trial=dot.trial, class_="trial", **where, **style))
    return plot(parts, f"{y} by {x}: {len(dots)} trials")


def plot(parts: Sequence[Markup], told: str) -> Markup:
    """Return a plot with room for the texts beside its axes; `told` is its alternative text."""
    return tag("div", tag("svg", *parts, width="100%", height=HEIGHT, role="img", aria_label=told), class_="plot")


def frame(across: Scale, up: Scale, x: str, y: str, *, whole: bool = False) -> Markup:
    """Return the grid, ticks and labels of both axes; `whole` keeps horizontal ticks at whole numbers."""
    parts = []
    for tick in up.ticks():
        at = height_of(up, tick)
        parts.append(tag("line", x1=0, x2="100%", y1=at, y2=at, class_="grid"))
        parts.append(tag("text", number(tick), x=-8, y=at + 4, class_="tick end"))
    for tick in across.ticks():
        if not whole or tick == round(tick):
            parts.append(tag("text", number(tick), x=percent(across.at(tick)), y=HEIGHT + 18, class_="tick middle"))
    parts.append(tag("line", x1=0, x2="100%", y1=HEIGHT, y2=HEIGHT, class_="axis"))
    parts.append(tag("text", x, x="50%", y=HEIGHT + 38, class_="tick middle"))
    parts.append(tag("text", y, x=-44, y=-12, class_="tick"))
    return Markup("").join(parts)


def path(line: Points, across: Scale, up: Scale, colour: str) -> Markup:
    """Return a curve, stretched to the width of the plot; its stroke keeps its width."""
    corners = " ".join(f"{across.at(place):.2f},{100 - up.at(value):.2f}" for place, value in line)
    drawn = tag("polyline", points=corners, stroke=colour, class_="curve", vector_effect="non-scaling-stroke")
    return tag("svg", drawn, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height=HEIGHT)


def height_of(up: Scale, value: float) -> float:
    """Return the vertical place of a value in pixels."""
    return HEIGHT * (1 - up.at(value) / 100)
