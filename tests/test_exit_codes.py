import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from study.errors import ConfigError, DataError
from study.exit_codes import SIGNALS, run_command


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("--seed: must be at least 0, but got -1."), 2, "study: --seed: must be at least 0, but got -1.\n"),
        (ConfigError("--seed: a.\n--name: b."), 2, "study: --seed: a.\nstudy: --name: b.\n"),
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


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """Run as a user without HOME and without an entry in the list of users."""
    monkeypatch.setenv("HOME", "unset below, and restored at the end")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_user_without_a_home_gets_one(homeless, tmp_path):
    assert run_command(lambda: Path.home().is_dir() and 7) == 7
    assert Path.home() == tmp_path / f"study-home-{os.getuid()}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory to another user")
def test_home_of_another_user_is_refused(homeless, tmp_path, capsys):
    home = tmp_path / f"study-home-{os.getuid()}"
    home.mkdir()
    os.chown(home, 12345, 12345)
    assert run_command(lambda: 0) == 2
    assert capsys.readouterr().err == f"study: HOME: must be set, since {home} belongs to another user.\n"


ENDING = """
import atexit, sys
from study.exit_codes import run_program
class Slow:
    def __del__(self): print("taken down")
def main():
    global kept
    kept = Slow()
    atexit.register(lambda: print("exit handler"))
    print("done", end="\\n")
    {last}
run_program(main)
"""


@pytest.mark.parametrize(
    ("last", "code"), [("return 3", 3), ("sys.exit(2)", 2), ("raise ValueError", 1)], ids=["result", "exit", "error"]
)
def test_program_ends_with_its_code_after_exit_handlers(last, code):
    done = subprocess.run([sys.executable, "-c", ENDING.format(last=last)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[:2]) == (code, ["done", "exit handler"])


def test_program_does_not_wait_for_objects_to_be_taken_down():
    done = subprocess.run([sys.executable, "-c", ENDING.format(last="return 0")], capture_output=True, text=True)
    assert "taken down" not in done.stdout
