import pytest

from study.formatting import format_bytes, format_duration, format_points, format_value


@pytest.mark.parametrize(("value", "text"), [(0.00123456, "0.00123"), (64, "64"), ("adam", "adam"), (1e-5, "1e-05")])
def test_value_has_three_significant_digits(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(("fraction", "text"), [(0.1666, "16.7"), (-0.0001, "0.0"), (-0.03, "-3.0")])
def test_points_have_no_negative_zero(fraction, text):
    assert format_points(fraction) == text


@pytest.mark.parametrize(("seconds", "text"), [(42, "42s"), (185, "3m05s"), (3725, "1h02m")])
def test_duration_has_two_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (10**13, "10.0 TB")]
)
def test_format_bytes_chooses_a_unit(number, text):
    assert format_bytes(number) == text
