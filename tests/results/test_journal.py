"""The journal's file after whatever moment a process died at."""

import errno
import os
import resource
import threading
import time

import pytest

from study.errors import RecordError
from study.results.journal import Journal

FIRST, SECOND = {"op_code": 0, "text": "é"}, {"op_code": 1, "values": [1, 2]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.log"


def logs_of(path, writable=False):
    return list(Journal(path, writable=writable).read_logs(0))


def without_mark(logs):
    return [{key: value for key, value in log.items() if key != "unfinished"} for log in logs]


def test_lines_are_read_back_as_they_were_written(path):
    journal = Journal(path, writable=True)
    journal.append_logs([FIRST])
    journal.append_logs([SECOND])
    assert logs_of(path) == [FIRST, SECOND]
    assert list(journal.read_logs(0)) == [FIRST, SECOND]
    journal.append_logs([FIRST])
    assert list(journal.read_logs(2)) == [FIRST]


def test_step_is_written_only_when_it_is_over(path):
    journal = Journal(path, writable=True)
    with journal.step():
        journal.append_logs([FIRST])
        with journal.step():
            journal.append_logs([SECOND])
        assert logs_of(path) == []
        assert list(journal.read_logs(0)) == [FIRST, SECOND]
    assert without_mark(logs_of(path)) == [FIRST, SECOND]


def test_a_step_that_breaks_off_leaves_nothing(path):
    journal = Journal(path, writable=True)
    with pytest.raises(KeyboardInterrupt), journal.step():
        journal.append_logs([FIRST])
        raise KeyboardInterrupt
    assert path.read_bytes() == b""


def test_a_cut_line_or_step_is_taken_back(path):
    journal = Journal(path, writable=True)
    journal.append_logs([FIRST])
    whole = path.read_bytes()
    with journal.step():
        for _ in range(3):
            journal.append_logs([SECOND])
    content = path.read_bytes()
    for end in range(len(whole), len(content)):
        path.write_bytes(content[:end])
        assert logs_of(path, writable=True) == [FIRST]
        assert path.read_bytes() == whole
    path.write_bytes(content)
    assert len(logs_of(path)) == 4


def test_reading_changes_nothing(path):
    Journal(path, writable=True).append_logs([FIRST])
    torn = path.read_bytes() + b'{"op_co'
    path.write_bytes(torn)
    assert logs_of(path) == [FIRST]
    assert path.read_bytes() == torn


def test_a_damaged_line_is_named_and_nothing_is_changed(path):
    journal = Journal(path, writable=True)
    for _ in range(3):
        journal.append_logs([FIRST])
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = lines[0] + lines[1][:5] + b"\0\0" + lines[1][7:] + lines[2]
    path.write_bytes(damaged)
    with pytest.raises(RecordError, match=r"journal.log: line 2 must be a JSON object, but is damaged"):
        Journal(path, writable=True)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("content", [b"no journal", b"\x80\x04\x95", b'{"op_code": 0'])
def test_file_without_a_whole_line_is_no_journal(path, content):
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"journal.log: line 1 must be a JSON object, but is damaged"):
        Journal(path, writable=True)
    assert path.read_bytes() == content


def test_full_disk_leaves_no_half_step(path):
    """A limit on the file's size stands for a full disk: the write ends in the middle of a line."""
    journal = Journal(path, writable=True)
    journal.append_logs([FIRST])
    whole = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
    try:
        with pytest.raises(RecordError, match=r"journal.log: must be readable and writable, but got: File too large"):
            journal.append_logs([SECOND])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole


def test_steps_do_not_wait_for_the_disk_but_settling_does(path, monkeypatch):
    disk_answers, synced = threading.Event(), []

    def slow_fsync(descriptor):
        disk_answers.wait(60)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    journal = Journal(path, writable=True)
    journal.append_logs([FIRST])
    journal.append_logs([SECOND])
    assert logs_of(path) == [FIRST, SECOND]
    assert synced == []
    disk_answers.set()
    journal.settle()
    assert synced == [path.stat().st_ino] * 2


def append_often(journal):
    for _ in range(60_000):
        journal.append_logs([SECOND])
        time.sleep(0.001)


@pytest.mark.parametrize("go_on", [append_often, Journal.settle])
def test_a_step_that_never_reached_the_disk_is_reported(path, monkeypatch, go_on):
    def failing_fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing_fsync)
    journal = Journal(path, writable=True)
    journal.append_logs([FIRST])
    with pytest.raises(RecordError, match=r"journal.log: .* but got: Input/output error. Recorded results are safe"):
        go_on(journal)
    assert logs_of(path)[0] == FIRST
