import errno
import io
import logging
import os
import subprocess
import sys

import pytest
from rich.console import Console as RichConsole
from rich.live import Live

from study.output import unbreakable_output


class Broken(io.StringIO):
    def __init__(self, code: int) -> None:
        super().__init__()
        self._code = code

    def write(self, text: str) -> int:
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize("code", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_failing_screen_does_not_end_the_work(code, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(code))
    with unbreakable_output():
        print("lost")
        print("lost", file=sys.stdout, flush=True)


def test_missing_screen_swallows_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with unbreakable_output():
        print("lost")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_characters_that_a_screen_lacks_are_replaced(encoding, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    with unbreakable_output():
        print("1e-05 … 0.01")
    assert screen.buffer.getvalue() == b"1e-05 ? 0.01\n"


def test_closed_pipe_keeps_the_exit_code():
    code = (
        "import sys; from study.exit_codes import run_command\n"
        "def work():\n"
        "    for line in range(20_000): print(line)\n"
        "    return 7\n"
        "sys.exit(run_command(work))"
    )
    command = f'{sys.executable} -c "$CODE" | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], env={**os.environ, "CODE": code}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n7\n", "")


def test_log_handler_writes_above_a_live_display(monkeypatch):
    with unbreakable_output():
        handler = logging.StreamHandler(sys.stderr)
        screen = RichConsole(file=io.StringIO(), force_terminal=True, width=60)
        with Live("live lines", console=screen, auto_refresh=False):
            handler.emit(logging.makeLogRecord({"msg": "a library's line"}))
    shown = screen.file.getvalue()
    assert shown.index("a library's line") < shown.rindex("live lines")


def test_no_library_prints_credentials(capsys):
    with unbreakable_output():
        logging.StreamHandler(sys.stderr).emit(logging.makeLogRecord({"msg": "asking http://anna:s3cret@host/api"}))
        print("View run at: http://anna:s3cret@host/#/runs/1")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("View run at: http://host/#/runs/1\n", "asking http://host/api\n")
