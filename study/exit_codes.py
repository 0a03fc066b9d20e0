"""Run a command, and turn its errors into one line on standard error and an exit code.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from study.errors import ConfigError, StudyError


def run_command(command: Callable[[], int], *, interrupted: str = "interrupted.") -> int:
    """Run a command and return its exit code; SIGTERM interrupts the command as Ctrl-C does.

    Args:
        command: function that does the work and returns an exit code.
        interrupted: line to print after an interruption, unless the interruption carries a message; empty for none.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command()
    except StudyError as error:
        _print(str(error))
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as interruption:
        _print(str(interruption) or interrupted)
        return 130


def _print(line: str) -> None:
    if line:
        print(f"study: {line}", file=sys.stderr)


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
