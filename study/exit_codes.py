"""Run a command, and turn its errors and signals into one line on standard error and an exit code.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""

import atexit
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from study.environment import keep_loopback_direct
from study.errors import ConfigError, StudyError
from study.output import unbreakable_output

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that interrupt a command: Ctrl-C, kill, a closed terminal."""


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run a program's `main`, and end the process with its exit code as soon as everything is written.

    Python would then take down torch, Ray and MLflow object by object: up to 8 s of silence on two busy cores. All exit
    handlers run before, since this one is registered first.
    """
    codes: list[int] = []

    def end() -> None:
        if codes:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or missing
                    stream.flush()
            os._exit(codes[0])

    atexit.register(end)
    codes.append(main())
    sys.exit(codes[0])


def run_command(command: Callable[[], int], *, interrupted: str = "interrupted.") -> int:
    """Run a command and return its exit code; SIGTERM and SIGHUP interrupt the command as Ctrl-C does.

    The first signal interrupts; all later ones change nothing, so that the command can end in order. A signal that is
    ignored from the start, as SIGHUP is under nohup, stays ignored.

    Args:
        command: function that does the work and returns an exit code.
        interrupted: line to print after an interruption, unless the interruption carries a message; empty for none.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    with unbreakable_output():
        try:
            _ensure_home()
            keep_loopback_direct()
            return command()
        except StudyError as error:
            _print(str(error))
            return 2 if isinstance(error, ConfigError) else 1
        except KeyboardInterrupt as interruption:
            _print(str(interruption) or interrupted)
            return 130


def _ensure_home() -> None:
    """Give a user without a home directory one: a container's user without a name, and without HOME.

    Ray, torch and MLflow fail without a home directory. This one lasts, since the cache lies in it.
    """
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir(), f"study-home-{os.getuid()}")
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_uid != os.getuid():
            raise ConfigError(f"HOME: must be set, since {home} belongs to another user.") from None
        os.environ["HOME"] = str(home)


def _print(message: str) -> None:
    for line in message.splitlines():
        print(f"study: {line}", file=sys.stderr)


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    print("study: ending …", file=sys.stderr, flush=True)
    raise KeyboardInterrupt
