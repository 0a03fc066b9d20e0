"""Begin, resume and watch a small study in a directory of its own; a session is one process that runs it."""

import contextlib
import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from processes import Process, family, trial_processes

from study.results.record import Record

NAME = "chaos"


@dataclass(frozen=True)
class Size:
    """Amount of work of a study."""

    fraction: float
    """Fraction of the digits' images, in (0, 1]."""
    trials: int
    epochs: int
    repeats: int
    pruner: str
    kills: int
    """Most kills of the study's driver."""
    pause_s: float
    """Most seconds between a state of the study and the fault that strikes it there."""


FULL = Size(fraction=0.2, trials=8, epochs=3, repeats=2, pruner="asha", kills=10, pause_s=5)
SHORT = Size(fraction=0.05, trials=2, epochs=2, repeats=1, pruner="none", kills=1, pause_s=1)
SPACE = """
model = "resnet18"
[space]
unfreeze_depth = {{ type = "int", low = 0, high = 2 }}
lr = {{ type = "float", low = 1e-5, high = 1e-2, log = true }}
batch_size = {{ type = "categorical", choices = [16, 32, 64] }}
[budget]
trials = {size.trials}
[pruner]
name = "{size.pruner}"
"""
STUDY = ["--data", "digits", "--weights", "none", "--image-size", "32"]
LIMIT_S = 900
"""Seconds after which a session counts as hanging."""


class Session:
    """A process that runs the study until it ends or is killed; its output goes to the file `log`."""

    def __init__(self, room: Path, *arguments: str, terminal: bool = False, **environment: str) -> None:
        """Start `study.run` in `room` with these arguments and additional environment variables, or in a terminal."""
        self.log = room / f"session-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "study.run", *arguments]
        variables = {**os.environ, "XDG_CACHE_HOME": str(room / "cache"), **environment}
        with open(self.log, "wb") as output:
            if terminal:
                self._terminal, screen = pty.openpty()
                self.process = subprocess.Popen(
                    command, cwd=room, stdin=screen, stdout=screen, stderr=screen, env=variables,
                    start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
                )  # fmt: skip
                os.close(screen)
                self._reader = threading.Thread(target=self._read, args=(os.dup(output.fileno()),), daemon=True)
                self._reader.start()
            else:
                self.process = subprocess.Popen(
                    command, cwd=room, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=variables
                )

    def _read(self, log: int) -> None:
        """Copy what the terminal shows into the log, until the terminal closes."""
        self._open = True
        while self._open and (self.runs or select.select([self._terminal], [], [], 0)[0]):
            if select.select([self._terminal], [], [], 0.2)[0]:
                try:
                    os.write(log, os.read(self._terminal, 65536))
                except OSError:  # nobody writes to the terminal any more
                    break
        os.close(log)

    def close_terminal(self) -> None:
        """Close the terminal, as a window that is closed or a connection that breaks does."""
        self._open = False
        self._reader.join()
        os.close(self._terminal)

    @property
    def runs(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait for the process to end, and return its exit code."""
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"a session took more than {LIMIT_S} s: {self.log.read_text()[-2000:]}") from None

    def run_on(self, seconds: float) -> bool:
        """Wait for at most `seconds`, and return whether the process still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.runs

    def kill(self) -> set[Process]:
        """Kill the driver alone, as the kernel does when memory is short; return the driver and its descendants."""
        had = family(self.process.pid)
        self.process.kill()
        self.process.wait()
        return had


def begin(room: Path, size: Size, concurrent: int, *more: str, terminal: bool = False, **environment: str) -> Session:
    """Begin the study, or resume it if its record exists."""
    (room / "chaos.toml").write_text(SPACE.format(size=size))
    work = ["--fraction", str(size.fraction), "--epochs", str(size.epochs), "--repeats", str(size.repeats)]
    command = ["--search", "chaos.toml", "--name", NAME, *work, *STUDY]
    if record_of(room):
        command = ["--resume", NAME]
    return Session(room, *command, "--concurrent", str(concurrent), *more, terminal=terminal, **environment)


def directory_of(room: Path) -> Path:
    """Return the directory of the study's record, which may not exist yet."""
    return room / "mlruns" / "studies" / NAME


def record_of(room: Path) -> Record | None:
    """Read the study's record; None if it does not exist yet."""
    directory = directory_of(room)
    return Record.read(directory) if directory.exists() else None


def lines_of(room: Path) -> int:
    """Count the lines of the study's journal; 0 if it does not exist yet."""
    journal = directory_of(room) / "journal.log"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def phase_of(room: Path) -> str:
    """Describe the study's progress from its record."""
    record = record_of(room)
    if record is None:
        return "before the record"
    if record.noted("verdict"):
        return "after the verdict"
    if record.judging:
        return f"verdict, after {sum(trial.finished for trial in record.finals())} refits"
    return f"search, after {sum(trial.finished for trial in record.trials())} trials"


def wait_for_trial(session: Session) -> list[int]:
    """Wait until a trial runs, and return the ids of trial processes; none if the session ends first."""
    processes = trial_processes(session.process.pid)
    while session.runs and not processes:
        time.sleep(0.1)
        processes = trial_processes(session.process.pid)
    return processes
