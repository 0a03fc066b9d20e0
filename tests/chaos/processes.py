"""Find the processes below a process in /proc, kill them, and wait until they are gone (Linux)."""

import contextlib
import os
import signal
import time
from pathlib import Path

Process = tuple[int, str]
"""A process id and its start time; the id alone may belong to another process by now."""


def family(pid: int) -> set[Process]:
    """Return a process and all its descendants."""
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
    """Return the ids of the processes that still run; zombies do not count."""
    found = set()
    for pid, started in processes:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[19] == started and fields[0] != "Z":
                found.add(pid)
    return found


def wait_until_gone(processes: set[Process], limit_s: float = 60) -> list[str]:
    """Return a fault for each process that still runs after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while (left := alive(processes)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [f"processes: {Path(f'/proc/{pid}/cmdline').read_bytes()[:80]!r} still runs" for pid in left]


def trial_processes(driver: int) -> list[int]:
    """Return the ids of Ray's workers below a driver that run a trial."""
    found = []
    for pid, _ in family(driver):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ImplicitFunc"):
                found.append(pid)
    return sorted(found)


def kill_all(processes: set[Process]) -> None:
    """Kill processes with SIGKILL."""
    signal_all(alive(processes), signal.SIGKILL)


def signal_all(pids: set[int], number: signal.Signals) -> None:
    """Send a signal to all processes that still run."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
