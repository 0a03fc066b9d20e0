"""Show a study's progress in a notebook: one output that is updated in place, and keeps the last line of each trial.

rich's own live display prints every line anew in a notebook that lacks ipywidgets. Knows no study: it reads lines.
"""

import html
import re
import sys
import time
from typing import Any, TextIO, cast

from study.ticker import Screen

UPDATE_S = 0.5
"""Seconds between two updates of the output."""
MAX_LINES = 200
"""Largest number of lines in the output; older ones are counted."""
WIDTH = 110
"""Columns of the output."""
_SAME = re.compile(r"(#\S+) |(\w+) +[\d,]+ of [\d,]+ images, |(now +[^…]+) …|(time) .* left$")
"""A line that replaces an earlier one: it begins with a trial's key, a kind of work on images or a stage, or says how
much time is left."""


def notebook_screen() -> Screen | None:
    """Return a screen that writes into the running notebook cell; None outside of notebooks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    output = CellOutput(display)
    return Screen(file=cast(TextIO, output), width=WIDTH, force_terminal=False, force_jupyter=False, color_system=None)


class CellOutput:
    """A text stream that shows its lines as one output of a notebook's cell."""

    encoding = "utf-8"

    def __init__(self, display: Any) -> None:
        """Show nothing yet; `display` is IPython's function."""
        self._display = display
        self._handle: Any = None
        self._lines: dict[str, str] = {}
        self._rest = ""
        self._count = 0
        self._shown = 0.0

    def write(self, text: str) -> int:
        """Take text up, and show it unless an update has just been shown."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            same = _SAME.match(line)
            self._count += 1
            key = next(filter(None, same.groups())) if same else str(self._count)
            if key in self._lines and same:
                del self._lines[key]  # the newest line stands last
            self._lines[key] = line
        if lines and time.monotonic() - self._shown >= UPDATE_S:
            self.show()
        return len(text)

    def flush(self) -> None:
        """Do nothing, since rich flushes after every line."""

    def show(self) -> None:
        """Show all lines now."""
        self._shown = time.monotonic()
        bundle = {"text/html": f"<pre>{html.escape(self.text())}</pre>", "text/plain": self.text()}
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.display(bundle, raw=True, update=True)

    def text(self) -> str:
        """Return the lines that are shown."""
        lines = [*self._lines.values()]
        left_out = len(lines) - MAX_LINES
        if left_out > 0:
            lines = [f"… {left_out:,} earlier lines", *lines[left_out:]]
        return "\n".join(lines)
