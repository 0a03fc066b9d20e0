import os
import signal

import pytest

from study.errors import ConfigError, DataError
from study.exit_codes import SIGNALS, run_command


@pytest.fixture(autouse=True)
def _restore_signals():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("--seed: must be at least 0, but got -1."), 2, "study: --seed: must be at least 0, but got -1.\n"),
        (DataError("pets: must hold images."), 1, "study: pets: must hold images.\n"),
        (KeyboardInterrupt(), 130, "study: interrupted.\n"),
        (KeyboardInterrupt("interrupted; the record is kept."), 130, "study: interrupted; the record is kept.\n"),
    ],
)
def test_error_becomes_one_line_and_a_code(error, code, line, capsys):
    assert run_command(lambda: fail(error)) == code
    assert capsys.readouterr().err == line


def test_command_returns_its_own_code():
    assert run_command(lambda: 7) == 7


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_interrupts_a_command(number, capsys):
    assert run_command(lambda: os.kill(os.getpid(), number) or 0) == 130
    assert capsys.readouterr().err == "study: ending …\nstudy: interrupted.\n"


@pytest.mark.parametrize("again", SIGNALS)
def test_second_signal_changes_nothing(again, capsys):
    ended = []

    def work() -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), again)
            ended.append("in order")
        return 0

    assert run_command(work) == 130
    assert ended == ["in order"]
    assert capsys.readouterr().err == "study: ending …\nstudy: interrupted.\n"


def test_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert run_command(lambda: os.kill(os.getpid(), signal.SIGHUP) or 7) == 7
