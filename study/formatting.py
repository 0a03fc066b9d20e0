"""Format values for people, each kind in one way on the console, in the report and in MLflow."""


def format_value(value: object) -> str:
    """Return a value of a recipe: floats with three significant digits, everything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_points(fraction: float) -> str:
    """Return a difference of two fractions in percentage points, with one decimal and without a sign for zero."""
    return f"{100 * fraction:z.1f}"


def format_duration(seconds: float) -> str:
    """Return seconds as 42s, 3m05s or 1h02m."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
