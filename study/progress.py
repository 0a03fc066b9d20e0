"""Show the progress of work on many images: a bar in a terminal, a plain line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from study.formatting import format_duration

PLAIN_S = 10.0
"""Seconds between two plain lines."""
SHOWN_AFTER_S = 1.0
"""Seconds of work before its progress is shown."""
DRAWN_S = 0.1
"""Seconds between two changes of a bar."""


class WorkScreen:
    """Receiver of remarks and of the progress of work, which prints both."""

    def __init__(self, screen: Console) -> None:
        """Print on `screen`."""
        self._screen = screen
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
                             console=screen, transient=True, auto_refresh=False)  # fmt: skip
        self._name = ""
        self._started = self._last = 0.0
        self._before = 0

    def on_remark(self, name: str, text: str) -> None:
        """Print a line: its subject in one word, and a sentence."""
        self._screen.print(f"{name:<8} {text}", soft_wrap=True)

    def on_work(self, name: str, done: int, of: int) -> None:
        """Show the progress of one kind of work; `done` grows up to `of`."""
        now = time.monotonic()
        if name != self._name:
            self.close()
            self._name, self._before, self._started, self._last = name, done, now, now
            return
        if done >= of:
            self.close()
            return
        waited, terminal = now - self._last, self._screen.is_terminal
        if now - self._started < SHOWN_AFTER_S or waited < (DRAWN_S if terminal else PLAIN_S):
            return
        self._last = now
        rate = (done - self._before) / (now - self._started)
        text = f"{done:,} of {of:,} images, {rate:,.0f} images/s, {format_duration((of - done) / rate)} left"
        if not terminal:
            self.on_remark(name, text)
            return
        if not self._bar.live.is_started:
            self._bar.start()
            self._bar.add_task(f"{name:<8}", total=of, text=text)
        self._bar.update(self._bar.tasks[-1].id, completed=done, text=text, refresh=True)

    def close(self) -> None:
        """Remove the bar; safe to call twice."""
        if self._bar.live.is_started:
            self._bar.stop()
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
        self._name = ""
