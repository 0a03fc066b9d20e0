"""Tell what a study may take: processes and memory, by the user's and the container's limits, and idle CPU cores."""

import contextlib
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def make_processes_allowed(needed: int) -> str | None:
    """Raise this process's own limit as far as allowed; return the limit that leaves too few processes, in words.

    Args:
        needed: number of processes and threads that are about to start.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
            soft = hard
    if os.getuid() and soft != resource.RLIM_INFINITY and (running := _threads_of(os.getuid())) + needed > soft:
        return f"`ulimit -u` allows {soft}, and {running} run"
    for group in _control_groups("pids"):
        limit, current = _read(group / "pids.max"), _read(group / "pids.current")
        if limit is not None and current is not None and current + needed > limit:
            return f"the container allows {limit} (pids.max, --pids-limit), and {current} run"
    return None


def free_memory_bytes() -> int:
    """Return how much memory this process may still take: of the system's, or of its control group's if that is less.

    Pages that only cache files count as free, since the system takes them back.
    """
    try:
        lines = dict(line.split(":") for line in (PROC / "meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        return sys.maxsize
    for group in _control_groups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            bound, taken = _read(group / limit), _read(group / used)
            with contextlib.suppress(OSError, ValueError, KeyError):
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
                cached = sum(int(stat[name]) for name in ("active_file", "inactive_file"))
                if bound is not None and taken is not None:
                    free = min(free, max(0, bound - taken + cached))
    return free


def _busy_seconds() -> float:
    try:
        _, *ticks = (PROC / "stat").read_text().partition("\n")[0].split()
    except OSError:  # not Linux
        return 0.0
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen, *_ = map(int, ticks)
    return (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class CpuTimes:
    """Processor seconds until now, of the whole computer and of this process."""

    busy_s: float = field(default_factory=_busy_seconds)
    """Seconds of all cores since the computer started; 0 where the system does not tell."""
    own_s: float = field(default_factory=time.process_time)
    at: float = field(default_factory=time.perf_counter)

    def cores_of_others(self, until: "CpuTimes") -> float:
        """Return how many cores other programs have kept busy on average from here `until` then."""
        others_s = (until.busy_s - self.busy_s) - (until.own_s - self.own_s)
        return max(0.0, others_s / max(until.at - self.at, 1e-9))


def _threads_of(user: int) -> int:
    """Return the number of threads of a user's processes; 0 where there is no /proc."""
    threads = 0
    for status in PROC.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if int(fields["Uid"].split()[0]) == user:
                threads += int(fields["Threads"])
    return threads


def _control_groups(controller: str) -> list[Path]:
    """Return the directories of this process's control groups, versions 1 and 2, with the limits of a controller."""
    groups = [CGROUPS, CGROUPS / controller]  # in a container, the root is the container's own group
    with contextlib.suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", controller):
                groups.append(CGROUPS / controllers / path.lstrip("/"))
    return groups


def _read(file: Path) -> int | None:
    """Return the number in a file; None if there is none, as with the word 'max'."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
