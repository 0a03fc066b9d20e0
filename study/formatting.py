"""Format values for people, each kind in one way on the console, in the report and in MLflow."""

from collections.abc import Sequence


def format_value(value: object) -> str:
    """Return a value of a recipe: floats with three significant digits, everything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_points(fraction: float) -> str:
    """Return a difference of two fractions in percentage points, with one decimal and without a sign for zero."""
    return f"{100 * fraction:z.1f}"


def format_bounds(*fractions: float, scale: float = 100) -> list[str]:
    """Return differences of fractions in percentage points, with so many digits that only an exact 0 is printed as 0.

    Args:
        fractions: differences in [-1, 1].
        scale: factor before printing; 1 for differences that are no fractions.
    """
    values = [scale * fraction for fraction in fractions]
    smallest = min((abs(value) for value in values if value), default=1.0)
    digits = next((digits for digits in range(1, 9) if float(f"{smallest:.{digits}f}")), 9)
    return [f"{value:z.{digits}f}" if value else "0" for value in values]


def format_bytes(number: int) -> str:
    """Return a size as 12 B, 3.4 kB, 5.6 MB or 7.8 GB, in powers of 1,000."""
    value, unit = float(number), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Return seconds as 42s, 3m05s or 1h02m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
