"""Draw trials as lines across one axis for each field, as SVG (parallel coordinates)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from study.charts.curves import HEIGHT, height_of, plot
from study.charts.svg import Scale, number, percent, spread, tag

FEW_AXES = 4
"""Most axes whose names have room beside each other; of more, every second name stands below."""
STRONG_LINES = 12.0
"""About how many lines are drawn strongly, however many there are: the others must not hide them."""

Value = str | int | float
Kind = Literal["linear", "log", "choices"]
"""How values lie on an axis: as numbers, or spread evenly in their order."""


@dataclass(frozen=True)
class Line:
    """One trial: its values by axis."""

    trial: str
    values: Mapping[str, Value]
    tip: str
    strength: float
    """How good the trial is among the others, in [0, 1]; better lines are stronger and lie above."""


def draw_parallel(lines: Sequence[Line], axes: Mapping[str, Kind]) -> Markup:
    """Draw each trial as a line over all axes.

    Args:
        lines: trials, at least one.
        axes: names of the axes from left to right, and how their values lie on them.
    """
    parts, places = [], {}
    for index, (name, kind) in enumerate(axes.items()):
        across = percent(100 * index / max(len(axes) - 1, 1))
        values = [line.values[name] for line in lines]
        places[name] = _places(values, kind)
        side = "end" if index == len(axes) - 1 else "start" if index == 0 else "middle"
        parts.append(tag("line", x1=across, x2=across, y1=0, y2=HEIGHT, class_="axis"))
        below = len(axes) > FEW_AXES and index % 2 == 1
        y = HEIGHT + 20 if below else -12
        parts.append(tag("text", name.replace("_", " "), x=across, y=y, class_=f"tick {side} strong"))
        for text, at in _ticks(values, kind):
            shift = -6 if side == "end" else 6
            anchor = "end" if side == "end" else "start"
            parts.append(tag("text", text, x=across, dx=shift, y=at + 4, class_=f"tick {anchor} halo"))
    drawn = []
    fading = max(3.0, len(lines) / STRONG_LINES)
    for line in sorted(lines, key=lambda line: line.strength):
        corners = " ".join(
            f"{100 * index / max(len(axes) - 1, 1):.2f},{100 * places[name][line.values[name]] / HEIGHT:.2f}"
            for index, name in enumerate(axes)
        )
        shown = {"stroke": "var(--after)", "stroke_opacity": round(0.12 + 0.88 * line.strength**fading, 3)}
        linked = {"data_tip": line.tip, "data_trial": line.trial, "vector_effect": "non-scaling-stroke"}
        drawn.append(tag("polyline", points=corners, class_="curve trial", **shown, **linked))
    stretched = tag("svg", *drawn, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height=HEIGHT)
    told = f"Parallel coordinates of {len(lines)} trials over {', '.join(axes).replace('_', ' ')}"
    return plot([stretched, *parts], told)


def _scale(values: Sequence[Value], kind: Kind) -> Scale:
    return spread([float(value) for value in values], log=kind == "log")


def _places(values: Sequence[Value], kind: Kind) -> dict[Value, float]:
    """Return the vertical place of each value in pixels; the first choice is at the bottom."""
    if kind == "choices":
        choices = sorted(set(values), key=lambda value: (isinstance(value, str), value))
        return {choice: HEIGHT * (1 - (index + 0.5) / len(choices)) for index, choice in enumerate(choices)}
    scale = _scale(values, kind)
    return {value: height_of(scale, float(value)) for value in values}


def _ticks(values: Sequence[Value], kind: Kind) -> list[tuple[str, float]]:
    if kind == "choices":
        return [(str(choice), at) for choice, at in _places(values, kind).items()]
    scale = _scale(values, kind)
    ends = [0.0 if scale.zero else scale.low, scale.high] if scale.high > scale.low else [scale.low]
    between = [tick for tick in scale.ticks() if all(abs(scale.at(tick) - scale.at(end)) > 8 for end in ends)]
    return [(_short(tick), height_of(scale, tick)) for tick in [*ends, *between]]


def _short(value: float) -> str:
    return number(float(f"{value:.3g}"))
