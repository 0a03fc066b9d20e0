import os
import signal

import pytest

from study.errors import ConfigError, DataError
from study.exit_codes import run_command


@pytest.fixture(autouse=True)
def _restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


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


def test_sigterm_interrupts_a_command():
    assert run_command(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0) == 130
