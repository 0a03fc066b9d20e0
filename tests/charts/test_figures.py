"""What the figures say, read back from their texts and pixels; how they look is for eyes."""

import gc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from study.charts import figures

CLASSES = ("cat", "dog", "long_haired_guinea_pig")
CONFUSION = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
LOSSES = {"vgg16": [2.2, 2.0], "resnet18": [1.4, 1.0]}
ACCURACIES = {"vgg16": 0.393, "resnet18": 0.714}
SPEEDS = {"vgg16": 3.2, "resnet18": 1260.0}


def render(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()


def texts(figure: Figure) -> set[str]:
    render(figure)  # ticks are written when drawn
    return {text.get_text() for text in figure.findobj(Text) if text.get_visible()}


def tick_names(figure: Figure) -> tuple[list[str], list[str]]:
    ax = figure.axes[0]
    return [t.get_text() for t in ax.get_xticklabels()], [t.get_text() for t in ax.get_yticklabels()]


def overlap(first: Text, second: Text) -> bool:
    return first.get_window_extent().overlaps(second.get_window_extent())


FIGURES: dict[str, Callable[[], Figure]] = {
    "confusion_matrix": lambda: figures.confusion_matrix(CONFUSION, CLASSES, "validation"),
    "confusion_difference": lambda: figures.confusion_difference(CONFUSION, CONFUSION.T, CLASSES, "verdict"),
    "samples": lambda: figures.samples(np.full((3, 3, 8, 8), 0.5), [0, 1, 2], CLASSES, "training images"),
    "learning_curve": lambda: figures.learning_curve([1], {"val_loss": [2.0], "val_accuracy": [0.1]}, "trial 0"),
    "comparison": lambda: figures.comparison(["vgg16", "resnet18"], LOSSES, ACCURACIES, SPEEDS),
}


def test_confusion_matrix_shows_counts_and_percent_of_the_row() -> None:
    figure = figures.confusion_matrix(CONFUSION, CLASSES, "validation")
    cells = [text.get_text() for text in figure.axes[0].texts]
    assert cells[:6] == ["6\n75 %", "2\n25 %", "0\n0 %", "1\n25 %", "3\n75 %", "0\n0 %"]


def test_confusion_matrix_shows_a_class_without_images_as_zeros() -> None:
    figure = figures.confusion_matrix(CONFUSION, CLASSES, "validation")
    assert [text.get_text() for text in figure.axes[0].texts][6:] == ["0\n0 %"] * 3


def test_confusion_matrix_has_rows_true_and_columns_predicted() -> None:
    figure = figures.confusion_matrix(CONFUSION, CLASSES, "validation")
    ax = figure.axes[0]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("true class", "predicted class")
    cells = {text.get_text(): text.get_position() for text in ax.texts}
    assert cells["2\n25 %"] == (1.5, 0.5)
    assert ax.yaxis_inverted()


@pytest.mark.parametrize("count", [2, 10, 25, 30, 100])
def test_confusion_matrix_names_every_class_on_both_axes(count: int) -> None:
    classes = [f"class_{index}" for index in range(count)]
    figure = figures.confusion_matrix(np.eye(count), classes, "validation")
    assert tick_names(figure) == (classes, classes)


@pytest.mark.parametrize("count", [2, 4, 10, 25, 30, 100])
def test_confusion_matrix_keeps_long_names_apart_and_inside(count: int) -> None:
    classes = [f"a_long_name_of_class_{index:05d}" for index in range(count)]
    figure = figures.confusion_matrix(np.eye(count), classes, "validation")
    render(figure)
    names = figure.axes[0].get_yticklabels()
    assert not any(overlap(above, below) for above, below in pairwise(names))
    page = figure.bbox
    boxes = [text.get_window_extent() for text in [*names, *figure.axes[0].get_xticklabels()]]
    assert all(page.containsx(box.x0) and page.containsy(box.y0) and page.containsx(box.x1) for box in boxes)


@pytest.mark.parametrize(("name_length", "count"), [(3, 10), (22, 2), (26, 2), (26, 3), (9, 6)])
def test_confusion_matrix_never_writes_level_names_over_each_other(name_length: int, count: int) -> None:
    figure = figures.confusion_matrix(np.eye(count), ["n" * name_length] * count, "validation")
    render(figure)
    names = figure.axes[0].get_xticklabels()
    level = names[0].get_rotation() == 0
    assert not (level and any(overlap(left, right) for left, right in pairwise(names)))


def test_confusion_matrix_has_no_cell_texts_above_25_classes() -> None:
    classes = [str(index) for index in range(26)]
    assert not figures.confusion_matrix(np.eye(26), classes, "validation").axes[0].texts


def test_confusion_matrix_takes_dollars_in_a_name_as_they_are() -> None:
    classes = ["$5_note$", "_$_{coin"]
    figure = figures.confusion_matrix(np.eye(2), classes, "of $x_$")
    assert {*classes, "of $x_$"} <= texts(figure)
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())


def test_confusion_matrix_cuts_a_very_long_name() -> None:
    figure = figures.confusion_matrix(np.eye(2), ["x" * 80, "dog"], "validation")
    assert tick_names(figure)[0] == ["x" * 25 + "…", "dog"]


def test_confusion_difference_writes_after_minus_before_with_its_sign() -> None:
    before, after = np.array([[3, 4], [0, 5]]), np.array([[7, 0], [0, 5]])
    figure = figures.confusion_difference(before, after, ["cat", "dog"], "verdict")
    assert [text.get_text() for text in figure.axes[0].texts] == ["+4", "-4", "0", "0"]


def test_confusion_difference_subtracts_unsigned_counts() -> None:
    before, after = np.array([[3, 4], [0, 5]], dtype=np.uint8), np.array([[7, 0], [0, 5]], dtype=np.uint8)
    figure = figures.confusion_difference(before, after, ["cat", "dog"], "verdict")
    assert figure.axes[0].texts[1].get_text() == "-4"


@pytest.mark.parametrize("after", [[[9, 0], [1, 1]], [[0, 0], [0, 0]]])
def test_confusion_difference_centres_its_colours_at_zero(after: list[list[int]]) -> None:
    """Also where nothing changed at all."""
    figure = figures.confusion_difference(np.zeros((2, 2), int), np.array(after), ["cat", "dog"], "verdict")
    low, high = figure.axes[0].collections[0].get_clim()
    assert low == -high < 0


def test_samples_shows_colours_above_their_names() -> None:
    images = np.zeros((2, 3, 4, 4))
    images[0, 0] = 1  # red
    images[1, 2] = 1  # blue
    ax = figures.samples(images, np.array([2, 0]), CLASSES, "training images").axes[0]
    assert [text.get_text() for text in ax.texts] == ["long haired guinea pig", "cat"]
    assert [to_hex(image.get_array()[0, 0]) for image in ax.images] == ["#ff0000", "#0000ff"]


def test_samples_shows_32_images_at_most() -> None:
    ax = figures.samples(np.zeros((40, 3, 4, 4)), np.zeros(40, int), CLASSES, "training images").axes[0]
    assert len(ax.images) == len(ax.texts) == 32


def test_samples_keeps_long_names_apart() -> None:
    figure = figures.samples(np.zeros((17, 3, 4, 4)), [2] * 17, CLASSES, "training images")
    render(figure)
    names = figure.axes[0].texts
    assert not any(overlap(left, right) for left, right in pairwise(names))
    assert all(figure.bbox.containsy(name.get_window_extent().y0) for name in names)


def test_learning_curve_draws_losses_and_accuracies_in_percent() -> None:
    metrics = {"train_loss": [2.0, 1.0], "val_loss": [2.1, 1.2], "val_accuracy": [0.5, 0.625], "epoch_s": [3.0, 3.0]}
    losses, accuracies = figures.learning_curve([1, 2], metrics, "trial 0").axes
    assert [line.get_label() for line in losses.lines] == ["train", "val"]
    assert list(accuracies.lines[0].get_ydata()) == [50, 62.5]
    assert accuracies.get_ylabel() == "accuracy (%)"


def test_learning_curve_gives_a_split_one_colour_in_both_panels() -> None:
    metrics = {"epoch_s": [3.0], "train_loss": [2.0], "val_loss": [2.1], "val_accuracy": [0.5]}
    losses, accuracies = figures.learning_curve([1], metrics, "trial 0").axes
    assert losses.lines[1].get_color() == accuracies.lines[0].get_color()


@pytest.mark.parametrize(
    "metrics", [{"train_loss": [2.0, 1.0]}, {"train_loss": [2.0, 1.0], "val_accuracy": [None] * 2}]
)
def test_learning_curve_has_one_panel_without_accuracies(metrics: dict[str, list[float | None]]) -> None:
    assert len(figures.learning_curve([1, 2], metrics, "trial 0").axes) == 1


def test_learning_curve_joins_the_epochs_that_were_measured() -> None:
    losses = figures.learning_curve([1, 2, 3], {"val_loss": [2.0, None, 1.0]}, "trial 0").axes[0]
    assert list(losses.lines[0].get_xdata()) == [1, 3]


def test_learning_curve_writes_long_names_below_the_curves() -> None:
    names = [f"#{number} resnet18 · depth 1 · lr 0.001 · batch 64" for number in range(12)]
    figure = figures.learning_curve([1, 2], {f"{name}_loss": [2.0, 1.0] for name in names}, "training loss")
    render(figure)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert legend.get_window_extent().y1 < figure.axes[0].get_window_extent().y0
    assert figure.axes[0].get_window_extent().height > 150


def test_learning_curve_draws_a_trial_without_epochs() -> None:
    assert figures.png(figures.learning_curve([], {}, "trial 0"))


def test_comparison_writes_the_value_at_each_bar() -> None:
    shown = texts(figures.comparison(["vgg16", "resnet18"], LOSSES, ACCURACIES, SPEEDS))
    assert {"vgg16", "resnet18", "39.3 %", "71.4 %", "3.2", "1,260"} <= shown


def test_comparison_keeps_bars_in_line_without_a_value() -> None:
    models = ["resnet18", "vgg16"]
    figure = figures.comparison(models, {"resnet18": [1.4]}, {"resnet18": 0.7}, {"resnet18": 26.0})
    assert "nan" not in " ".join(texts(figure))
    _, accuracies, speeds = figure.axes
    assert accuracies.get_ylim() == speeds.get_ylim() == (1.5, -0.5)


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figure_has_a_title_inside_the_page(draw: Callable[[], Figure]) -> None:
    figure = draw()
    render(figure)
    (title,) = (text for text in figure.texts if text.get_text() == figure.get_suptitle())
    box = title.get_window_extent()
    assert title.get_text()
    assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1) and figure.bbox.containsy(box.y1)


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_png_of_a_figure_is_a_png_of_its_size(draw: Callable[[], Figure]) -> None:
    figure = draw()
    data = figures.png(figure)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    size = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert size == pytest.approx(figure.get_size_inches() * figures.DPI, abs=1)


def test_png_leaves_no_matrix_pixels_to_the_garbage_collector() -> None:
    def pixels() -> int:
        return sum(type(found) is RendererAgg for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = pixels()
        figures.png(figures.confusion_matrix(CONFUSION, CLASSES, "trial 0"))
        assert pixels() == before
    finally:
        gc.enable()


def test_figures_leave_the_state_of_the_process_alone() -> None:
    def settings() -> dict[str, object]:  # to read `backend` is to choose one
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    before = settings()
    for draw in FIGURES.values():
        figures.png(draw())
    assert plt.get_fignums() == []
    assert settings() == before


def test_figures_drawn_in_threads_equal_those_drawn_alone() -> None:
    def draw_all(_: int) -> list[bytes]:
        return [figures.png(draw()) for draw in FIGURES.values()]

    with ThreadPoolExecutor(2) as pool:
        drawn = list(pool.map(draw_all, range(2)))
    assert drawn == [draw_all(0)] * 2
    assert plt.get_fignums() == []


def test_figures_import_no_torch() -> None:
    code = "import sys, study.charts.figures; print(sorted({'torch', 'mlflow', 'optuna', 'ray'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
