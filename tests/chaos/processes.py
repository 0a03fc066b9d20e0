"""Processes by what started them, read from /proc: whom to kill, and whether all are gone."""

import contextlib
import os
import signal
import time
from pathlib import Path

Process = tuple[int, str]
"""Its number, and the moment of its start, without which the number may be another's by now."""


def family(pid: int) -> set[Process]:
    """Return a process and all below it."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            parents[int(file.parent.name), fields[19]] = int(fields[1])
    found = {process for process in parents if process[0] == pid}
    while added := {child for child, parent in parents.items() if parent in {number for number, _ in found}} - found:
        found |= added
    return found


def alive(processes: set[Process]) -> set[int]:
    """Return those that are still there and not merely waited for by their parent."""
    found = set()
    for pid, started in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[19] == started and fields[0] != "Z":
                found.add(pid)
    return found


def wait_until_gone(processes: set[Process], limit_s: float = 60) -> list[str]:
    """Return a fault for each process that is still there after so long."""
    deadline = time.monotonic() + limit_s
    while (left := alive(processes)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"processes: {Path(f'/proc/{pid}/cmdline').read_bytes()[:80]!r} is left" for pid in left]


def trial_processes(driver: int) -> list[int]:
    """Return Ray's workers below a process that have been given a trial."""
    found = []
    for pid, _ in family(driver):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ImplicitFunc"):
                found.append(pid)
    return sorted(found)


def kill_all(processes: set[Process]) -> None:
    """Kill processes at once."""
    for pid in alive(processes):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
