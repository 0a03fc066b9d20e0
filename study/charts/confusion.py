"""Draw confusion matrices as SVG, and rank the confusions of many classes."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from study.charts.svg import tag

MOST_DRAWN = 100
"""Largest number of classes that are drawn; of more, a table of the largest confusions says more."""
MOST_ANNOTATED = 25
"""Largest number of classes for which the cells have room for counts."""
MOST_TIPS = 2_000
"""Largest number of cells that explain themselves when pointed at; more would make the page large."""
LONGEST_NAME = 22
"""Largest length of a class name beside the cells, in characters."""


def draw_confusion(counts: NDArray[np.integer], classes: Sequence[str], title: str) -> Markup:
    """Draw the counts, coloured by their share of the true class, so that rare and common classes are comparable.

    Args:
        counts: numbers of images, (classes, classes); row = true class, column = predicted class.
        classes: class names, in the order of the rows; at most MOST_DRAWN.
        title: what was classified by what; for the alternative text.
    """
    n = len(classes)
    assert n <= MOST_DRAWN
    side = int(np.interp(n, (2, 10, MOST_ANNOTATED, 50, MOST_DRAWN), (72, 38, 30, 14, 9)))
    letter = float(np.interp(side, (9, 14, 30), (7.5, 9.5, 12.5)))
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in classes]
    longest = max(map(len, names)) * letter * 0.62
    level = longest < side - 4
    left, top = longest + 34, (letter + 30 if level else longest * 0.75 + 34)
    sums = np.maximum(counts.sum(axis=1), 1)
    centre = top + n * side / 2
    sideways = {"transform": f"translate(12 {centre:.0f}) rotate(-90)", "class_": "tick middle"}
    parts = [
        tag("text", "predicted class", x=left + n * side / 2, y=13, class_="tick middle"),
        tag("text", "true class", x=0, y=0, **sideways),
        tag("rect", x=left, y=top, width=n * side, height=n * side, class_="empty"),
    ]
    for index, name in enumerate(names):
        middle = (index + 0.5) * side
        parts.append(tag("text", name, x=left - 6, y=top + middle + letter / 3, class_="end", font_size=letter))
        x, y = left + middle, top - 6
        look: dict[str, object] = {"x": x, "class_": "middle"}
        if not level:
            x += letter / 3
            look = {"x": x, "transform": f"rotate(-48 {x:.1f} {y:.1f})"}
        parts.append(tag("text", name, y=y, font_size=letter, **look))
    gap = 1 if n <= 50 else 0
    cells = np.argwhere(counts)
    for true, predicted in cells:
        share = float(counts[true, predicted] / sums[true])
        x, y = left + predicted * side, top + true * side
        tip = None
        if len(cells) <= MOST_TIPS:
            tip = f"{counts[true, predicted]:,} of {sums[true]:,} images of {classes[true]} predicted as"
            tip += f" {classes[predicted]} ({share:.0%})"
        look = {"class_": "cell" if true == predicted else "cell wrong", "fill_opacity": round(0.06 + 0.94 * share, 3)}
        parts.append(tag("rect", x=x, y=y, width=side - gap, height=side - gap, data_tip=tip, **look))
        if n <= MOST_ANNOTATED:
            text = f"{counts[true, predicted]:,}"
            size = min(letter + 1, 1.55 * (side - 4) / len(text))
            style = "count strongest" if share > 0.55 else "count"
            parts.append(tag("text", text, x=x + side / 2, y=y + side / 2 + size / 3, class_=style, font_size=size))
    width, height = left + n * side + (6 if level else 0.75 * longest), top + n * side + 4
    return tag(
        "svg", *parts, width=round(width), height=round(height), viewBox=f"0 0 {width:.0f} {height:.0f}",
        role="img", aria_label=f"Confusion matrix: {title}", class_="matrix",
    )  # fmt: skip


def largest_confusions(
    counts: NDArray[np.integer], classes: Sequence[str], most: int
) -> list[tuple[str, str, int, float]]:
    """Return the largest counts beside the diagonal: true class, predicted class, images, share of the true class.

    Args:
        counts: numbers of images, (classes, classes); row = true class, column = predicted class.
        classes: class names, in the order of the rows.
        most: largest number of confusions; those of equal size are in the order of the classes.
    """
    wrong = np.array(counts)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(counts)) for place in order]
    sums = np.maximum(counts.sum(axis=1), 1)
    return [
        (classes[true], classes[predicted], int(wrong[true, predicted]), float(wrong[true, predicted] / sums[true]))
        for true, predicted in pairs
        if wrong[true, predicted]
    ]
