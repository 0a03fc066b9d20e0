"""Tell how many processes and threads this user may still start, by the user's limit and by the container's."""

import contextlib
import os
import resource
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
    for directory in _pids_groups():
        limit, current = _read(directory / "pids.max"), _read(directory / "pids.current")
        if limit is not None and current is not None and current + needed > limit:
            return f"the container allows {limit} (pids.max, --pids-limit), and {current} run"
    return None


def _threads_of(user: int) -> int:
    """Return the number of threads of a user's processes; 0 where there is no /proc."""
    threads = 0
    for status in PROC.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            if int(fields["Uid"].split()[0]) == user:
                threads += int(fields["Threads"])
    return threads


def _pids_groups() -> list[Path]:
    """Return the directories of this process's control groups, versions 1 and 2, that may limit its processes."""
    groups = [CGROUPS, CGROUPS / "pids"]  # in a container, the root is the container's own group
    with contextlib.suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "pids"):
                groups.append(CGROUPS / controllers / path.lstrip("/"))
    return groups


def _read(file: Path) -> int | None:
    """Return the number in a file; None if there is none, as with the word 'max'."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
