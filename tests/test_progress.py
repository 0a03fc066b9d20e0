"""Work on many images shows its rate and the time left: a bar in a terminal, plain lines elsewhere."""

import io
import re

import pytest

from study import progress
from study.progress import WorkScreen
from study.ticker import Screen, Ticker


@pytest.fixture(autouse=True)
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def screen(*, terminal: bool) -> tuple[WorkScreen, io.StringIO]:
    text = io.StringIO()
    ticker = Ticker(Screen(file=text, force_terminal=terminal, width=80, color_system=None), tick_s=3600.0)
    if terminal:
        ticker.begin("reading")
    return WorkScreen(ticker), text


def test_work_is_plain_lines_on_a_pipe(seconds: list[float]) -> None:
    work, text = screen(terminal=False)
    for second in range(6):
        seconds[0] = 100.0 + second
        work.on_work("decode", 100 + 50 * second, 1600)
    assert text.getvalue().splitlines() == [
        "decode   200 of 1,600 images, 50 images/s, 28s left",
        "decode   300 of 1,600 images, 50 images/s, 26s left",
    ]


def test_work_is_a_bar_in_a_terminal(seconds: list[float]) -> None:
    work, text = screen(terminal=True)
    for second in range(4):
        seconds[0] = 100.0 + second
        work.on_work("decode", 100 * second, 400)
    work.close()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    assert "decode" in drawn
    assert "━" in drawn
    assert "300 of 400 images, 100 images/s, 1s left" in drawn


def test_short_work_shows_nothing() -> None:
    work, text = screen(terminal=False)
    for done in (10, 20, 30):
        work.on_work("decode", done, 30)
    assert text.getvalue() == ""


def test_remark_is_one_line_whatever_its_length() -> None:
    work, text = screen(terminal=False)
    work.on_remark("store", "word " * 50)
    assert text.getvalue() == f"store    {'word ' * 50}\n"
