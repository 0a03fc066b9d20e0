"""Call functions in another process, so that their Python holds up no thread of this one.

`multiprocessing` would run the user's main module again in that process. Knows nothing of studies.
"""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, Self, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

MOST_S = 120.0
"""Seconds that a call may take: a process that hangs must not keep a study from ending."""


class Call(Protocol):
    """Function that calls another one: here, or in another process."""

    def __call__(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what the function returns."""


class OtherProcess:
    """Call functions in one other process, one at a time. The process starts with the first call."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Return what a function returns there; call it here if the process does not start, dies, or takes too long.

        Args:
            function: function of a module, which may be called twice. What it takes, returns and raises can be pickled.
            args: its arguments.
            kwargs: its arguments by name.

        Raises:
            Exception: what the function raises.
        """
        question = pickle.dumps((function, args, kwargs))
        with self._lock:
            try:
                value, error = self._ask(question)
            except Exception:  # it broke off, or it raised an error that cannot be pickled
                return function(*args, **kwargs)
        if error is not None:
            raise error
        answer: _T = value
        return answer

    def __enter__(self) -> Self:
        """Return this object."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._end()

    def _ask(self, question: bytes) -> tuple[Any, Exception | None]:
        """Return the value that a function returned there, or the error that it raised."""
        try:
            process = self._process = self._process or _start()
            assert process.stdin and process.stdout
            overdue = threading.Timer(MOST_S, process.kill)
            overdue.start()
            try:
                process.stdin.write(question)
                process.stdin.flush()
                answer: tuple[Any, Exception | None] = pickle.load(process.stdout)
            finally:
                overdue.cancel()
        except BaseException:  # of Ctrl-C too: the next call must not read this one's answer
            self._end()
            raise
        return answer

    def _end(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()  # closes its pipes
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    """Start a process that answers; it ends when its input does, as when this process dies."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C is for this process
    )


def _answer() -> None:
    """Call functions and write what they return, or raise, until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    while True:
        try:
            function, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        value: Any = None
        raised: Exception | None = None
        try:
            value = function(*args, **kwargs)
        except Exception as error:
            raised = error
        pickle.dump((value, raised), answers)
        answers.flush()


if __name__ == "__main__":
    _answer()
