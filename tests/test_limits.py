"""The limits on processes of the user and of the container are found, and named where they are too low."""

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study import limits


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Let the container's limits be files in a directory of the test."""
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    (tmp_path / "pids").mkdir()
    return tmp_path


@pytest.mark.parametrize("group", [".", "pids"], ids=["version-2", "version-1"])
def test_containers_limit_is_named(container, group):
    (container / group / "pids.max").write_text("300\n")
    (container / group / "pids.current").write_text("51\n")
    assert limits.make_processes_allowed(250) == "the container allows 300 (pids.max, --pids-limit), and 51 run"
    assert limits.make_processes_allowed(249) is None


def test_unlimited_container_allows_any_number(container):
    (container / "pids.max").write_text("max\n")
    (container / "pids.current").write_text("51\n")
    assert limits.make_processes_allowed(10**9) is None


def test_threads_of_this_process_are_counted():
    (threads,) = re.findall(r"^Threads:\t(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert limits._threads_of(os.getuid()) >= int(threads)


def test_own_limit_is_raised_as_far_as_allowed():
    code = "import resource; from study import limits; limits.make_processes_allowed(1)"
    code += "; print(*resource.getrlimit(resource.RLIMIT_NPROC))"
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    lower = ["prlimit", f"--nproc=100000:{hard}"] if hard in (-1, resource.RLIM_INFINITY) or hard > 100000 else []
    done = subprocess.run([*lower, sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(hard)] * 2


def test_free_memory_is_at_most_the_computers():
    total = int(re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024
    assert 0 < limits.free_memory_bytes() <= total


@pytest.mark.parametrize(
    ("group", "limit", "used"),
    [(".", "memory.max", "memory.current"), ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes")],
    ids=["version-2", "version-1"],
)
def test_containers_memory_counts_cached_files_as_free(container, group, limit, used):
    (container / group).mkdir(exist_ok=True)
    (container / group / limit).write_text("1000\n")
    (container / group / used).write_text("900\n")
    (container / group / "memory.stat").write_text("anon 600\nactive_file 100\ninactive_file 200\n")
    assert limits.free_memory_bytes() == 400


def test_cores_of_other_programs_leave_out_this_one():
    before, after = limits.CpuTimes(busy_s=10.0, own_s=1.0, at=0.0), limits.CpuTimes(busy_s=14.0, own_s=2.0, at=2.0)
    assert before.cores_of_others(after) == 1.5
    assert after.cores_of_others(limits.CpuTimes(busy_s=14.5, own_s=3.0, at=3.0)) == 0.0


def test_a_busy_program_is_noticed():
    program = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile 1: pass"], stdout=subprocess.PIPE)
    try:
        program.stdout.readline()
        before = limits.CpuTimes()
        time.sleep(0.5)
        assert before.cores_of_others(limits.CpuTimes()) > 0.5
    finally:
        program.kill()
        program.communicate()


def test_no_program_is_noticed_where_the_system_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PROC", tmp_path)
    assert limits.CpuTimes().busy_s == 0.0
