import os
import subprocess
import sys

import pytest

from study.files import new_directory, replace_file, scratch_directory


def test_replaced_file_keeps_its_content_if_writing_fails(tmp_path):
    file = tmp_path / "report.html"
    file.write_text("before")
    with pytest.raises(OSError, match="full"), replace_file(file) as draft:
        draft.write_text("half")
        raise OSError("full")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "before")]


def test_replaced_file_has_the_new_content(tmp_path):
    with replace_file(tmp_path / "report.html") as draft:
        draft.write_text("after")
        assert not (tmp_path / "report.html").exists()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "after")]


def test_new_directory_appears_whole(tmp_path):
    with new_directory(tmp_path / "studies" / "one") as draft:
        (draft / "journal.log").write_text("{}")
        assert not (tmp_path / "studies" / "one").exists()
    assert [path.name for path in (tmp_path / "studies").iterdir()] == ["one"]
    assert (tmp_path / "studies" / "one" / "journal.log").read_text() == "{}"


def test_new_directory_leaves_nothing_if_writing_fails(tmp_path):
    with pytest.raises(OSError, match="full"), new_directory(tmp_path / "one") as draft:
        (draft / "journal.log").write_text("{}")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from study.files import scratch_directory
with scratch_directory(Path(sys.argv[1])) as directory:
    print(directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds a scratch directory in tmp_path; yield the process and the directory, made old."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        directory = process.stdout.readline().strip()
        os.utime(directory, (0, 0))
        yield process, directory
        process.kill()


def test_scratch_directory_is_removed_at_the_end(tmp_path):
    with scratch_directory(tmp_path) as directory:
        (directory / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_a_killed_process_is_removed_by_the_next(holder, tmp_path):
    process, directory = holder
    process.kill()
    process.wait()
    with scratch_directory(tmp_path):
        assert not os.path.exists(directory)


def test_scratch_of_a_living_process_stays(holder, tmp_path):
    _, directory = holder
    with scratch_directory(tmp_path):
        assert os.path.exists(directory)


@pytest.mark.parametrize("name", ["study-home-1000", "study-notes", "other-ab12cd34"])
def test_other_directories_stay(tmp_path, name):
    (tmp_path / name).mkdir()
    os.utime(tmp_path / name, (0, 0))
    with scratch_directory(tmp_path):
        assert (tmp_path / name).is_dir()
