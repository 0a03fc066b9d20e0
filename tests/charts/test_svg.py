"""Charts place values where they belong, and escape every text."""

import pytest

from study.charts.svg import Scale, number, spread, tag


@pytest.mark.parametrize(
    ("scale", "value", "place"),
    [(Scale(0, 10), 2.5, 25), (Scale(1e-4, 1e-2, log=True), 1e-3, 50), (Scale(3, 3), 3, 50), (Scale(-1, 1), -1, 0)],
)
def test_scale_places_a_value_in_percent(scale, value, place):
    assert scale.at(value) == pytest.approx(place)


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Scale(-3, 12), [0, 5, 10]),
        (Scale(1, 5), [1, 2, 3, 4, 5]),
        (Scale(3e-5, 0.2, log=True), [1e-4, 1e-3, 1e-2, 1e-1]),
        (Scale(48.9, 191.5, log=True), [50, 100]),
        (Scale(2e-4, 3e-4, log=True), [2e-4, 2.5e-4, 3e-4]),
        (Scale(51.2329, 71.0482, log=True), [60, 70]),
        (Scale(2, 2), [2]),
    ],
)
def test_ticks_are_round_and_inside_the_scale(scale, ticks):
    assert scale.ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(("values", "ticks"), [([0, 3], [0, 1, 2, 3]), ([1, 2], [1, 2]), ([4], [4])])
def test_ticks_of_whole_values_are_whole(values, ticks):
    assert spread(values, room=0.05).ticks() == ticks


@pytest.mark.parametrize("values", [[52, 53], [64, 64.0], [52, 70], [16, 17]])
def test_ticks_of_whole_values_are_whole_on_a_logarithmic_axis(values):
    ticks = spread(values, log=True, room=0.05).ticks()
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


def test_zero_lies_below_all_values_of_a_logarithmic_axis():
    scale = spread([0.0, 1e-3, 1e-1], log=True, room=0.05)
    assert scale.at(0.0) == 0 < scale.at(1e-3) < scale.at(1e-1) < 100
    assert scale.ticks() == pytest.approx([0, 1e-3, 1e-2, 1e-1])


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [0.0, 1e-3], [1e-3]])
def test_logarithmic_axis_of_few_values_places_each(values):
    scale = spread(values, log=True, room=0.05)
    assert all(0 <= scale.at(value) <= 100 for value in values)
    assert scale.ticks()


def test_tag_escapes_texts_and_attributes():
    assert tag("text", "<b>", data_tip='"&"') == '<text data-tip="&#34;&amp;&#34;">&lt;b&gt;</text>'


def test_tag_keeps_elements_and_drops_missing_attributes():
    assert tag("g", tag("rect", x=1.0), class_="cell", y=None) == '<g class="cell"><rect x="1"></rect></g>'


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (1e-5, "1e-5"), (0.001, "0.001"), (1234.5, "1,234.5")])
def test_number_is_written_short(value, text):
    assert number(value) == text
