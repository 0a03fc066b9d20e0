"""A command is never silent for long: a terminal's line counts seconds, other output gets plain lines."""

import io
import sys
import threading
from collections.abc import Iterator

import pytest
from rich.text import Text
from support.terminal import replay

from study import ticker
from study.output import unbreakable_output
from study.ticker import Screen, Ticker, shown

LONG_S = 60.0
"""Seconds after which a test that waits for another thread gives up."""


class Awaited(io.StringIO):
    """A stream that tells when enough text was written."""

    def __init__(self, wanted: str, times: int) -> None:
        super().__init__()
        self.seen = threading.Event()
        self._wanted, self._times = wanted, times

    def write(self, text: str) -> int:
        count = super().write(text)
        if self.getvalue().count(self._wanted) >= self._times:
            self.seen.set()
        return count


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that the test sets."""
    now = [100.0]
    monkeypatch.setattr(ticker.time, "monotonic", lambda: now[0])
    return now


def make(*, terminal: bool) -> tuple[Ticker, io.StringIO]:
    """Return a ticker whose thread never ticks by itself during a test, and what it writes."""
    text = io.StringIO()
    screen = Screen(file=text, force_terminal=terminal, width=80, color_system=None)
    return Ticker(screen, tick_s=LONG_S), text


def test_blocking_stage_is_redrawn_until_the_end() -> None:
    text = Awaited("now      starting", times=5)
    before = {*threading.enumerate()}
    ticking = Ticker(Screen(file=text, force_terminal=True, width=80), tick_s=0.001)
    ticking.begin("starting")
    assert text.seen.wait(LONG_S)  # the stage itself does nothing
    ticking.close()
    assert {*threading.enumerate()} <= before


def test_terminal_line_counts_the_seconds_of_its_stage(seconds: list[float]) -> None:
    ticking, text = make(terminal=True)
    ticking.begin("starting Ray")
    seconds[0] += 75
    ticking.tick()
    assert replay(text.getvalue())[0] == "now      starting Ray … 1m15s"
    ticking.close()


def test_ended_stages_leave_their_durations_on_a_terminal(seconds: list[float]) -> None:
    ticking, text = make(terminal=True)
    ticking.begin("loading")
    seconds[0] += 9
    ticking.begin("reading")
    ticking.close()
    assert replay(text.getvalue()) == ["done     loading: 9s", ""]


def test_plain_output_repeats_a_stage_and_tells_what_is_new(seconds: list[float]) -> None:
    ticking, text = make(terminal=False)
    ticking.begin("searching")
    for _ in range(6):
        seconds[0] += 1
        ticking.show([f"#0 resnet18  epoch {1 + (seconds[0] > 104)}/5"])  # a new state of the line is not yet a line
        ticking.tick()
    ticking.close()
    assert text.getvalue().splitlines() == [
        "now      searching …",
        "now      searching … 2s",
        "#0 resnet18  epoch 1/5",
        "now      searching … 4s",
        "now      searching … 6s",
        "#0 resnet18  epoch 2/5",
    ]


def test_no_silence_of_plain_output_is_longer_than_three_seconds() -> None:
    assert ticker.TICK_S + ticker.PLAIN_S <= 3


def test_plain_output_repeats_nothing_after_a_recent_line(seconds: list[float]) -> None:
    ticking, text = make(terminal=False)
    ticking.begin("searching")
    for _ in range(3):
        seconds[0] += 1.9
        ticking.screen.print("another line")
        ticking.tick()
    ticking.close()
    assert text.getvalue().count("searching") == 1


def test_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    ticking, text = make(terminal=True)
    ticking.begin("searching")
    ticking.tick()
    ticking.close()
    assert text.getvalue() == "now      searching …\n"


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let threads interrupt each other all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_lines_of_other_threads_do_not_tear_the_stage() -> None:
    text = io.StringIO()
    screen = Screen(file=text, force_terminal=True, width=80)
    ticking = Ticker(screen, tick_s=0.0001)
    ticking.begin("searching")

    def print_lines(name: str) -> None:
        for number in range(50):
            screen.print(f"{name} {number}")
            ticking.show(["trial"] * (number % 3))  # the live lines change their height

    printers = [threading.Thread(target=print_lines, args=(name,)) for name in ("one", "two")]
    for printer in printers:
        printer.start()
    for printer in printers:
        printer.join()
    ticking.close()
    shown = [line for line in replay(text.getvalue()) if line]
    assert sorted(shown) == sorted(f"{name} {number}" for name in ("one", "two") for number in range(50))


def test_latin_1_terminal_gets_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", stream)
    with unbreakable_output():
        ticking = Ticker(Screen(force_terminal=True, width=80), tick_s=LONG_S)
        ticking.begin("reading")
        ticking.tick()
        ticking.close()
    assert b"now      reading ? 0s" in stream.buffer.getvalue()


def test_screen_that_is_gone_stops_the_thread_silently() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            if threading.current_thread() is not threading.main_thread():
                raise OSError("gone")
            return super().write(text)

    before = {*threading.enumerate()}
    ticking = Ticker(Screen(file=Gone(), force_terminal=True, width=80), tick_s=0.001)
    ticking.begin("reading")
    for thread in {*threading.enumerate()} - before:
        thread.join(LONG_S)
    assert {*threading.enumerate()} <= before
    ticking.close()


def test_stage_stays_visible_on_a_low_terminal() -> None:
    text = io.StringIO()
    ticking = Ticker(Screen(file=text, force_terminal=True, width=80, height=5), tick_s=LONG_S)
    ticking.begin("searching")
    ticking.show([Text(f"trial {number}") for number in range(9)])
    assert replay(text.getvalue())[0].startswith("now      searching")
    ticking.close()


def test_stage_of_a_block_is_shown_and_its_error_passes(capsys: pytest.CaptureFixture[str]) -> None:
    before = {*threading.enumerate()}
    with pytest.raises(ZeroDivisionError), shown("reading"):
        assert capsys.readouterr().out == "now      reading …\n"
        raise ZeroDivisionError
    assert {*threading.enumerate()} <= before
