"""Show the progress of work on many images: a bar in a terminal, a plain line now and then elsewhere."""

import time

from rich.progress import BarColumn, Progress, TextColumn

from study.formatting import format_duration
from study.ticker import PLAIN_S, Ticker

SHOWN_AFTER_S = 1.0
"""Seconds of work before its progress is shown."""
DRAWN_S = 0.1
"""Seconds between two changes of a bar."""
BAR_COLUMNS = 20
"""Width of a bar, so that its words fit beside it into 80 columns."""


class WorkScreen:
    """Receiver of remarks and of the progress of work, which prints both."""

    def __init__(self, ticker: Ticker) -> None:
        """Show bars below the stage of `ticker`, and print on its screen."""
        self._ticker = ticker
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(BAR_COLUMNS),
            TextColumn("{task.fields[text]}"),
            console=ticker.screen,
            auto_refresh=False,
        )
        self._name = ""
        self._started = self._last = 0.0
        self._before = 0

    def on_remark(self, name: str, text: str) -> None:
        """Print a line: its subject in one word, and a sentence."""
        self._ticker.screen.print(f"{name:<8} {text}", soft_wrap=not self._ticker.moves)

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
        waited, moves = now - self._last, self._ticker.moves
        if now - self._started < SHOWN_AFTER_S or waited < (DRAWN_S if moves else PLAIN_S):
            return
        self._last = now
        rate = (done - self._before) / (now - self._started)
        text = f"{done:,} of {of:,} images, {rate:,.0f} images/s, {format_duration((of - done) / rate)} left"
        if not moves:
            self.on_remark(name, text)
            return
        if not self._bar.tasks:
            self._bar.add_task(f"{name:<8}", total=of, text=text)
        self._bar.update(self._bar.tasks[-1].id, completed=done, text=text)
        self._ticker.show_work(self._bar)

    def close(self) -> None:
        """Remove the bar; safe to call twice."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._ticker.show_work(None)
        self._name = ""
