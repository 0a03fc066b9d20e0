"""A function called in another process does what it does here, whatever happens to that process."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from processes import family, wait_until_gone
from support.calls import (
    TwoPartError,
    die_answering,
    die_elsewhere,
    fail,
    fail_in_two_parts,
    hang_elsewhere,
    print_and_return,
    sleep_and_return,
)

from study.other_process import OtherProcess


@pytest.fixture
def call():
    with OtherProcess() as call:
        yield call


def test_functions_are_called_in_one_other_process(call):
    first, second = call(os.getpid), call(os.getpid)
    assert first == second != os.getpid()


def test_what_a_function_prints_is_no_answer(call, capfd):
    assert [call(print_and_return, value=[1]), call(print_and_return, 2)] == [[1], 2]
    assert capfd.readouterr() == ("", "")


def test_error_of_a_function_is_raised_here(call):
    with pytest.raises(ValueError, match="no cat"):
        call(fail, "no cat")
    with pytest.raises(TwoPartError, match="no dog"):
        call(fail_in_two_parts)
    assert call(print_and_return, 3) == 3


def test_function_is_called_here_if_the_process_dies(call):
    assert call(die_elsewhere, os.getpid()) == "here"
    assert call(os.getpid) != os.getpid()  # and the next one in a new process


def test_function_is_called_here_if_the_process_dies_answering(call):
    assert call(die_answering, os.getpid()) == "here"


def test_function_is_called_here_if_the_process_hangs(call, monkeypatch):
    call(os.getpid)  # it has started
    monkeypatch.setattr("study.other_process.MOST_S", 0.5)
    assert call(hang_elsewhere, os.getpid()) == "here"


def test_function_is_called_here_if_no_process_starts(call, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert call(os.getpid) == os.getpid()


def test_interrupted_call_leaves_no_answer_to_the_next(call):
    call(os.getpid)  # it has started
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        call(sleep_and_return, 30)
    assert call(print_and_return, "next") == "next"


PROGRAM = """
import os
from study.other_process import OtherProcess

call = OtherProcess()
print(call(os.getpid), flush=True)
input()
"""


def test_other_process_ends_when_this_one_is_killed():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **pipes) as process:
        other = int(process.stdout.readline())
        ours = family(process.pid)
        process.kill()
    assert {process.pid, other} <= {pid for pid, _ in ours}
    assert wait_until_gone(ours, 10) == []
