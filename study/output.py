"""Keep a screen that is gone from ending a command, and passwords from reaching a screen or a log.

Lines that cannot be printed are lost, and the work goes on.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from study.errors import without_credentials


class _Unbreakable:
    """A text stream whose writes never fail: a closed terminal or pipe and a full disk cost the lines only.

    It leaves out the credentials of every URI, whichever library prints it.
    """

    def __init__(self, stream: TextIO, *, is_error: bool) -> None:
        self._stream = stream
        self._is_error = is_error

    def write(self, text: str) -> int:
        text = without_credentials(text)
        try:
            self._current().write(text)
        except UnicodeEncodeError:  # a screen in Latin-1 or ASCII
            encoding = self._stream.encoding or "ascii"
            self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):  # EIO, EPIPE, ENOSPC; closed
            self._give_up()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _current(self) -> TextIO:
        """Return the stream to write to: for standard error, that of a live display, if one is shown now.

        A live display takes the place of `sys.stderr`, but a library's log handler may still hold this stream, and
        would write into the display.
        """
        shown = sys.stderr
        return shown if self._is_error and not isinstance(shown, _Unbreakable) else self._stream

    def _give_up(self) -> None:
        """Send everything from now on to the null device, also what other libraries and the interpreter's end print."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def unbreakable_output() -> Iterator[None]:
    """Let no error of standard output or standard error reach the code inside; a missing stream swallows all lines."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as null:
        sys.stdout = _Unbreakable(before[0] or null, is_error=False)
        sys.stderr = _Unbreakable(before[1] or null, is_error=True)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
