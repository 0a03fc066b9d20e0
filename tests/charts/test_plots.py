"""Plots hold one mark for each value, where it belongs, and say what they show."""

import re

import numpy as np
import pytest

from study.charts.confusion import draw_confusion, largest_confusions
from study.charts.curves import HEIGHT, Dot, draw_curves, draw_dots
from study.charts.intervals import Interval, draw_intervals
from study.charts.parallel import Line, draw_parallel

COUNTS = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
CLASSES = ("cat", "dog", "<eel>")


def test_interval_lies_between_its_ends_beside_zero():
    drawn = draw_intervals([Interval("gain", 5.0, 2.0, 8.0, "5 (2 to 8)")], "points", zero=True)
    zero, dot = (float(re.search(rf"{name}=\"([\d.]+)%\"", drawn)[1]) for name in ("x1", "cx"))
    line = re.search(r'x1="([\d.]+)%" x2="([\d.]+)%" y1="\d+" y2="\d+" class="reach"', drawn)
    assert zero < float(line[1]) < dot < float(line[2])
    assert 'aria-label="points: gain 5 (2 to 8)"' in drawn


def test_interval_of_equal_values_is_drawn():
    assert "<circle" in draw_intervals([Interval("accuracy", 100.0, 100.0, 100.0, "100")], "accuracy")


def test_confusion_has_a_cell_for_each_count_above_zero():
    drawn = draw_confusion(COUNTS, CLASSES, "a network")
    assert drawn.count('class="cell"') == 2
    assert drawn.count('class="cell wrong"') == 2
    assert "2 of 8 images of cat predicted as dog (25%)" in drawn


def test_confusion_escapes_class_names():
    assert "<eel>" not in draw_confusion(COUNTS, CLASSES, "a network")


@pytest.mark.parametrize("classes", [2, 10, 25, 50, 100])
def test_confusion_names_every_class_on_both_axes(classes):
    names = [f"class number {index}" for index in range(classes)]
    drawn = draw_confusion(np.eye(classes, dtype=int), names, "a network")
    assert all(drawn.count(f">{name}</text>") == 2 for name in names)


def test_largest_confusions_are_ranked_without_the_diagonal():
    assert largest_confusions(COUNTS, CLASSES, 9) == [("cat", "dog", 2, 0.25), ("dog", "cat", 1, 0.25)]
    assert len(largest_confusions(COUNTS, CLASSES, 1)) == 1


def test_curves_have_a_line_and_a_key_for_each_name():
    drawn = draw_curves({"one": [(1, 2.0), (2, 1.0)], "<two>": [(1, 3.0)]}, "epoch", "loss")
    assert drawn.count("<polyline") == drawn.count("<li>") == 2
    assert "<two>" not in drawn


def test_curves_without_points_are_nothing():
    assert draw_curves({}, "epoch", "loss") == ""


def test_dots_are_higher_for_more():
    dots = [Dot(str(x), x, y, "tip", True) for x, y in ((0.001, 1.0), (0.1, 2.0))]
    drawn = draw_dots(dots, "lr", "accuracy", log=True)
    low, high = (float(at) for at in re.findall(r'cy="([\d.]+)"', drawn))
    assert 0 < high < low < HEIGHT


def test_best_so_far_is_drawn_in_steps():
    dots = [Dot(str(x), x, y, "tip", True) for x, y in ((0, 1.0), (1, 2.0))]
    corners = re.search(r'points="([^"]+)"', draw_dots(dots, "trial", "accuracy", best=[(0, 1.0), (1, 2.0)]))[1].split()
    assert len(corners) == 3
    assert corners[0].split(",")[1] == corners[1].split(",")[1]


def test_parallel_lines_pass_through_choices_in_their_order():
    lines = [Line(str(size), {"batch_size": size, "score": size / 10}, "tip", 0.5) for size in (16, 128)]
    drawn = draw_parallel(lines, {"batch_size": "choices", "score": "linear"})
    heights = [float(pair.split(",")[1]) for pair in re.findall(r'points="([\d.,]+) ', drawn)]
    assert heights == [75, 25]


def test_every_second_name_of_many_axes_stands_below():
    axes = {name: "linear" for name in ("lr", "depth", "batch", "decay", "accuracy")}
    lines = [Line(str(number), dict.fromkeys(axes, float(number)), "", 1.0) for number in (1, 2)]
    heights = [float(y) for y in re.findall(r' y="([^"]+)" class="tick \w+ strong"', draw_parallel(lines, axes))]
    assert [height > 0 for height in heights] == [False, True, False, True, False]


def test_weak_lines_of_many_trials_fade():
    def opacity(count):
        lines = [Line(str(n), {"lr": n, "accuracy": n}, "", n / (count - 1)) for n in range(count)]
        drawn = draw_parallel(lines, {"lr": "linear", "accuracy": "linear"})
        return [float(value) for value in re.findall(r'stroke-opacity="([^"]+)"', drawn)]

    assert sum(value > 0.5 for value in opacity(10)) == 3
    assert sum(value > 0.5 for value in opacity(200)) <= 12
