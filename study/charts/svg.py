"""Write SVG elements and scales. Colours are CSS variables of the page, so that charts follow light and dark mode.

Charts are as wide as their place: horizontal positions are percentages, so that texts keep their size on any screen.
Knows no trial and no class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

ZERO_GAP = 10.0
"""Factor between the place of 0 on a logarithmic axis and the lowest other value."""
COLOURS = 6
"""Number of CSS variables for curves: --series-1 and on."""


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis from one value to another, of which places are percentages."""

    low: float
    high: float
    log: bool = False
    zero: bool = False
    """Whether the lower end of a logarithmic axis stands for 0, as the weight decay of the baseline is."""
    whole: bool = False
    """Whether all values are whole, as numbers of blocks are; the ticks are then, too."""

    def at(self, value: float) -> float:
        """Return the place of a value, 0 at the lower end and 100 at the higher one; 50 if the ends are equal."""
        if self.zero and value <= 0:
            return 0.0
        low, high, place = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return 100 * (place - low) / (high - low) if high > low else 50.0

    def ticks(self, most: int = 6) -> list[float]:
        """Return at most `most` round values within the scale: powers of ten, or multiples of 1, 2 or 5 times one."""
        if self.high <= self.low:
            return [self.low]
        if self.zero:
            return [0.0, *Scale(self.low * ZERO_GAP, self.high, self.log).ticks(most - 1)]
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high) + 1e-9) + 1)
            for factors in (1,), (1, 2, 5):
                values = [factor * 10.0**power for power in powers for factor in factors]
                shown = [value for value in values if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
                if len(shown) > 1:
                    return shown[:: math.ceil(len(shown) / most)]
            return Scale(self.low, self.high, whole=self.whole).ticks(most // 2)  # too short for those
        power = 10.0 ** (math.floor(math.log10(self.high - self.low)) - 1)
        steps = (factor * power for factor in (1, 2, 5, 10, 20, 50, 100))
        fitting = (step for step in steps if (self.high - self.low) / step < most)
        step = next(step for step in fitting if step >= 1 or not self.whole)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * number for number in range(first, last + 1)]


def spread(values: Sequence[float], *, log: bool = False, room: float = 0.0) -> Scale:
    """Return an axis over all values, with a share `room` of its length, or a little, free at both ends.

    On a logarithmic axis, a 0 gets the lower end, a decade below all other values.
    """
    placed = [value for value in values if value > 0] if log else list(values)
    if not placed:  # zeros alone
        return Scale(0.0, 0.0)
    low, high = min(placed), max(placed)
    whole = all(float(value).is_integer() for value in placed)
    if log:
        factor = (high / low) ** room if high > low else (2.0 if room else 1.0)
        zero = len(placed) < len(values)
        return Scale(low / factor / (ZERO_GAP if zero else 1.0), high * factor, log=True, zero=zero, whole=whole)
    free = room * (high - low) or (abs(high) * 0.1 or 1.0 if room else 0.0)
    return Scale(low - free, high + free, whole=whole)


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Return an element of SVG or HTML; texts are escaped.

    Args:
        name: name of the element.
        children: its content: text, or elements as `Markup`.
        attributes: its attributes; a trailing underscore is dropped, others become hyphens. None leaves one out.
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), given, inner)


def percent(place: float) -> str:
    """Return a place on a scale as a value of an attribute."""
    return f"{place:.2f}%"


def series(index: int) -> str:
    """Return the colour of a curve; after the last colour, the first comes again."""
    return f"var(--series-{index % COLOURS + 1})"


def number(value: float) -> str:
    """Return a tick's value with as few digits as it needs."""
    if not 0 < abs(value) < 1e-3:
        return f"{value:,.6g}"
    factor, _, power = f"{value:.5e}".partition("e")
    return f"{float(factor):g}e{int(power)}"


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
