"""Draw the figures of MLflow and the report: confusion matrices, sample images, learning curves, model comparison.

This module knows only arrays and names. It does not change pyplot's state or rcParams, which belong to the whole
process: a background thread draws while other threads work. Class names are drawn literally, including the `$` that
matplotlib otherwise reads as the start of a formula.
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

DPI = 110
MARKERS = "os^DvP"  # distinguish the curves without colour
INK = "#333333"
FAINT = "#9aa5b1"
MIDDLE = "#78818f"
"""Colour of texts on no background: contrast 3.9 with the light page of the report, 4.6 with the dark one."""
GRID = "#e4e4e4"
MOST_ANNOTATED = 25
"""Largest number of classes for which the cells of a confusion matrix have room for text."""
MOST_TICKS = 100
"""Number of class names that fit along an axis; with more classes, only every second, third … name is written."""
LONGEST_NAME = 26
"""Largest length of a class name on an axis, in characters."""
LONGEST_KEY = 16
"""Largest length of a name in a legend inside the panel, in characters; with longer names the legend is below."""
MOST_SAMPLES = 32
"""Largest number of images in a figure of samples."""


def confusion_matrix(confusion: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw counts and row percentages, coloured by row percentage so that rare and common classes are comparable.

    Args:
        confusion: counts of images, (classes, classes) integer; row = true class, column = predicted class.
        classes: class names, in the order of the rows.
        title: title, wrapped if it is long.
    """
    counts = np.asarray(confusion, dtype=np.int64)
    percents = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # a row without images is zero
    texts = [
        [f"{count}\n{percent:.0f} %" for count, percent in zip(*row, strict=True)]
        for row in zip(counts, percents, strict=True)
        if len(classes) <= MOST_ANNOTATED
    ]
    return _heatmap(percents, texts, classes, title, "share of the true class (%)", cmap="Blues", vmin=0, vmax=100)


def confusion_difference(before: np.ndarray, after: np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw the change of each count from `before` to `after`: red for an increase, blue for a decrease.

    Args:
        before: counts of images, (classes, classes) integer; row = true class, column = predicted class.
        after: counts of a second classifier on the same images.
        classes: class names, in the order of the rows.
        title: title, wrapped if it is long.
    """
    change = np.asarray(after, dtype=np.int64) - np.asarray(before, dtype=np.int64)
    largest = max(int(np.abs(change).max()), 1)
    texts = [[f"{cell:+d}" if cell else "0" for cell in row] for row in change if len(classes) <= MOST_ANNOTATED]
    label = "change (images, after minus before)"
    return _heatmap(change, texts, classes, title, label, cmap="vlag", vmin=-largest, vmax=largest)


def samples(images: np.ndarray, labels: Sequence[int] | np.ndarray, classes: Sequence[str], title: str) -> Figure:
    """Draw at most the first 32 images in rows of eight, each with its class name below it, on no background.

    Args:
        images: at least one image, (n, 3, height, width) float in [0, 1], true colours; drawn as a square.
        labels: class of each image, (n,) indices into `classes`.
        classes: class names.
        title: title, wrapped if it is long.
    """
    shown = min(len(images), MOST_SAMPLES)
    columns = min(shown, 8)
    side = 8.8 / max(columns, 5)  # inches per column
    # Underscores become spaces, so that long names wrap between words; 15 characters per inch.
    words = [classes[int(label)].replace("_", " ") for label in labels[:shown]]
    names = [textwrap.fill(name, int(15 * side), max_lines=2, placeholder="…") for name in words]
    pitch = 1.1 + 0.15 * max(name.count("\n") + 1 for name in names)  # height of a row in column widths: image and name
    rows = math.ceil(shown / columns)
    figure = _figure(max(columns * side, 5), rows * pitch * side + 0.5, title, ink=MIDDLE, page="none")
    ax = figure.subplots()
    ax.set_axis_off()
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        top = row * pitch
        pixels = np.clip(images[index].transpose(1, 2, 0), 0, 1)  # undoing a normalisation leaves rounding errors
        ax.imshow(pixels, extent=(column + 0.04, column + 0.96, top + 0.96, top + 0.04))
        ax.text(column + 0.5, top + 1, name, ha="center", va="top", fontsize=8, color=MIDDLE, parse_math=False)
    ax.set(xlim=(0, columns), ylim=(rows * pitch, 0))
    return figure


def learning_curve(epochs: Sequence[int], metrics: Mapping[str, Sequence[float | None]], title: str) -> Figure:
    """Draw losses by epoch and, if there are any, accuracies in percent in a second panel.

    Args:
        epochs: epoch numbers, counted from 1.
        metrics: `<split>_loss` (nats) and `<split>_accuracy` (in [0, 1]) with one value per epoch, None if it was not
            measured; other metrics are ignored.
        title: title, wrapped if it is long.
    """
    panels = [("loss", "cross-entropy loss (nats)", 1), ("accuracy", "accuracy (%)", 100)]
    if not any(name.endswith("_accuracy") and any(v is not None for v in values) for name, values in metrics.items()):
        del panels[1]
    drawn = [name for name in metrics if name.endswith(("_loss", "_accuracy"))]
    splits = list(dict.fromkeys(name.rpartition("_")[0] for name in drawn))  # one colour in both panels
    below = any(len(split) > LONGEST_KEY for split in splits)
    figure = _figure(9 if below or len(panels) == 2 else 6, 3.8 + 0.17 * len(splits) * below, title)
    for ax, (kind, label, scale) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for index, split in enumerate(splits):
            values = metrics.get(f"{split}_{kind}", [None] * len(epochs))
            points = [(epoch, scale * v) for epoch, v in zip(epochs, values, strict=True) if v is not None]
            _curve(ax, points, split, index)
        _finish_curves(ax, label, legend=not below)
    if below:
        lines = figure.axes[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", frameon=False, fontsize=8, labelcolor=INK)
    return figure


def comparison(
    models: Sequence[str],
    losses: Mapping[str, Sequence[float]],
    accuracies: Mapping[str, float],
    images_per_s: Mapping[str, float],
) -> Figure:
    """Draw training losses, test accuracies and speeds of the models; a missing value has no line or bar.

    Args:
        models: model names, from top to bottom.
        losses: training loss of each epoch (nats), by model.
        accuracies: test accuracy in [0, 1], by model.
        images_per_s: training images per second, by model.
    """
    figure = _figure(9, max(3.4, 1.9 + 0.3 * len(models)), "Comparison of the models")
    curves, tests, speeds = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    for index, model in enumerate(models):
        _curve(curves, list(enumerate(losses.get(model, ()), start=1)), model, index)
    _finish_curves(curves, "training loss (nats)")
    percents = [100 * accuracies.get(model, math.nan) for model in models]
    _bars(tests, models, percents, "test accuracy (%)", lambda percent: f"{percent:.1f} %")
    tests.set(xlim=(0, 130), xticks=range(0, 101, 25))  # beyond 100 % is room for the values
    rates = [images_per_s.get(model, math.nan) for model in models]
    _bars(speeds, models, rates, "training speed (images/s)", lambda rate: f"{rate:,.{0 if rate >= 100 else 1}f}")
    speeds.margins(x=0.3)  # room for the values
    speeds.tick_params(labelleft=False)  # the panel of accuracies shows the names
    return figure


def accuracy_by_time(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], title: str) -> Figure:
    """Draw the best accuracy so far by time as steps: one colour for each name, one line for each run.

    Args:
        curves: seconds and accuracy in [0, 1] of each step of each run, by name.
        title: title, wrapped if it is long.
    """
    figure = _figure(9, 4.5, title)
    ax = figure.subplots()
    for index, (name, runs) in enumerate(curves.items()):
        for number, points in enumerate(runs):
            seconds, accuracies = zip(*points, strict=True)
            percents = [100 * accuracy for accuracy in accuracies]
            label = "_" * (number > 0) + name  # matplotlib keeps names that begin with _ out of the legend
            ax.step(seconds, percents, where="post", label=label, color=_colour(index))
    _finish_curves(ax, "best validation accuracy so far (%)")
    ax.set_xlabel("seconds since the start", color=INK)
    return figure


def draw_png(draw: Callable[[], Figure]) -> bytes:
    """Return the figure that a function draws as a PNG file."""
    return png(draw())


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file, and clear the figure.

    A figure, its contents and its pixels refer to each other, so that only the garbage collector frees them. Figures
    that were not cleared once held 80 MB in a study's driver.
    """
    buffer = io.BytesIO()
    # Draw once: Figure.savefig would draw everything twice, the first time only for the layout.
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]  # matplotlib leaves it untyped
    figure.clear()
    FigureCanvasBase(figure)  # replaces the canvas that holds the pixels
    return buffer.getvalue()


def _figure(width: float, height: float, title: str, *, ink: str = INK, page: str = "white") -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches around the panels
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor=page)
    wrapped = textwrap.fill(title, int(10 * width))  # ten characters per inch
    figure.suptitle(wrapped, fontsize=11, color=ink, parse_math=False)
    return figure


def _heatmap(
    values: np.ndarray, texts: list[list[str]], classes: Sequence[str], title: str, label: str, **colours: object
) -> Figure:
    import seaborn  # not before a figure is drawn: it takes 0.7 s, for which a study's first trial would wait

    n = len(classes)
    width = float(np.interp(n, (2, 10, 60, 100), (6, 8.5, 9, 12)))
    figure = _figure(width, 0.88 * width, title)
    ax = figure.subplots()
    annotated = n <= MOST_ANNOTATED
    seaborn.heatmap(
        values,
        ax=ax,
        annot=np.array(texts) if annotated else False,
        fmt="",
        annot_kws={"fontsize": np.interp(n, (4, 10, 25), (11, 8, 5)), "in_layout": False},
        linewidths=0.5 if annotated else 0,
        xticklabels=False,  # seaborn's choice of ticks would drop names
        yticklabels=False,
        cbar_kws={"label": label, "shrink": 0.8, "aspect": 30, "ticks": MaxNLocator(5, integer=True)},
        **colours,
    )
    for text, value in zip(ax.texts, values.flat, strict=False):  # no texts with too many classes
        if value == 0:
            text.set_color(FAINT)
    _name_classes(ax, classes, width)
    bar = figure.axes[1]
    bar.tick_params(labelsize=8, length=0, labelcolor=INK)
    bar.yaxis.label.set(fontsize=9, color=INK)
    return figure


def _name_classes(ax: Axes, classes: Sequence[str], width: float) -> None:
    n = len(classes)
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in classes]
    size = float(np.interp(n, (10, 30, 100), (9, 7.5, 5.5)))
    shown = slice(None, None, math.ceil(n / MOST_TICKS))
    centres = np.arange(n) + 0.5
    style: dict[str, Any] = {"fontsize": size, "color": INK, "parse_math": False}
    ax.set_yticks(centres[shown], names[shown], rotation=0, **style)
    longest = max(map(len, names)) * 0.64 * size / 72  # in inches, like all lengths here
    if longest > (width - longest - 1.4) / n:  # wider than a cell; colour bar and labels take 1.4
        style |= {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if n <= MOST_ANNOTATED else {"rotation": 90}
    ax.set_xticks(centres[shown], names[shown], **style)
    ax.tick_params(length=0)
    ax.set_xlabel("predicted class", color=INK)
    ax.set_ylabel("true class", color=INK)


@cache
def _colour(index: int) -> tuple[float, float, float]:
    """Return a colour that colour-blind readers distinguish from its neighbours."""
    import seaborn  # see `_heatmap`

    palette: list[tuple[float, float, float]] = seaborn.color_palette("colorblind")
    return palette[index % len(palette)]


def _curve(ax: Axes, points: Sequence[tuple[int, float]], name: str, index: int) -> None:
    if points:
        epochs, values = zip(*points, strict=True)
        colour, marker = _colour(index), MARKERS[index % len(MARKERS)]
        sparse = max(1, len(points) // 15)  # too many markers would hide the line
        ax.plot(epochs, values, label=name, color=colour, marker=marker, markersize=4, markevery=sparse)


def _finish_curves(ax: Axes, label: str, *, legend: bool = True) -> None:
    ax.set_xlabel("epoch", color=INK)
    ax.set_ylabel(label, color=INK)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    _quiet(ax, "both")
    if ax.lines and legend:
        ax.legend(frameon=False, fontsize=8, labelcolor=INK)


def _bars(ax: Axes, names: Sequence[str], values: Sequence[float], label: str, write: Callable[[float], str]) -> None:
    colours = [_colour(index) for index in range(len(names))]
    bars = ax.barh(range(len(names)), values, height=0.55, color=colours)
    ax.bar_label(bars, fmt=write, padding=3, fontsize=8, color=INK)
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel(label, color=INK)
    _quiet(ax, "x")


def _quiet(ax: Axes, grid: Literal["both", "x"]) -> None:
    ax.set_axisbelow(True)
    ax.grid(axis=grid, color=GRID, linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#999999")
    ax.tick_params(labelsize=8, length=0, labelcolor=INK)
