"""Show what a command does now, and for how long, so that it is never silent for long; knows no study.

A terminal gets one line that counts seconds, which other lines push down; everything else gets plain lines.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live

from study.formatting import format_duration

TICK_S = 1.0
"""Seconds between two looks at the clock."""
PLAIN_S = 2.0
"""Seconds of silence after which the next tick prints a plain line, so that no silence is longer than three seconds."""
JOIN_S = 5.0
"""Seconds to wait for the last tick; an interruption at a bad moment may have left it without its turn to print."""


class Screen(Console):
    """A rich console that prints text unchanged, because a path or a class name may look like rich's markup.

    Threads take turns: rich alone would let one thread print between another's decision where to write and its writing.
    """

    def __init__(self, **options: Any) -> None:
        """Set up a console; standard output unless `options` of rich's Console name another file."""
        self._turn = threading.RLock()
        self.printed = time.monotonic()
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    @property
    def rewrites(self) -> bool:
        """Whether lines can be rewritten, as on most terminals."""
        return self.is_terminal and self.is_interactive and not self.is_dumb_terminal

    def __enter__(self) -> "Screen":
        """Take the turn, and keep all output back until the end."""
        self._turn.acquire()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Print what was kept back, and give the turn away."""
        try:
            super().__exit__(kind, error, trace)
        finally:
            self._turn.release()

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich's console does, and note when."""
        super().print(*objects, **options)
        self.printed = time.monotonic()


class Ticker:
    """The stage of a command and the lines below it, kept moving by a thread until `close`."""

    def __init__(self, screen: Screen, tick_s: float = TICK_S) -> None:
        """Print on `screen`, and look at the clock every `tick_s` seconds."""
        self.screen = screen
        self._tick_s = tick_s
        self._stage = ""
        self._began = 0.0
        self._lines: Sequence[RenderableType] = ()
        self._told: Sequence[RenderableType] = ()
        self._work: RenderableType | None = None
        self._live = Live(console=screen, auto_refresh=False, transient=True, get_renderable=self._draw)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    @property
    def moves(self) -> bool:
        """Whether live lines are on the screen now."""
        return self._live.is_started

    def begin(self, stage: str) -> None:
        """End the stage before, and show that another begins."""
        self.end()
        self._stage, self._began = stage, time.monotonic()
        if self.screen.rewrites:
            with self.screen:
                self._live.start()
                self._live.refresh()
        else:
            self.screen.print(f"now      {stage} …", soft_wrap=not self.screen.is_terminal)
        if not self._thread.is_alive():
            self._thread.start()

    def end(self) -> None:
        """End the present stage; where its line was rewritten, a last line names it, and how long it took if it did."""
        stage, self._stage = self._stage, ""
        if stage and self.moves:
            took = f": {self._elapsed()}" if time.monotonic() - self._began >= 1 else ""
            self.screen.print(f"done     {stage}{took}")

    def show(self, lines: Sequence[RenderableType]) -> None:
        """Replace the lines below the stage; in plain output they are only printed after some silence."""
        self._lines = lines
        self._refresh()

    def show_work(self, work: RenderableType | None) -> None:
        """Replace the progress of work on images; None removes it."""
        self._work = work
        self._refresh()

    def tick(self) -> None:
        """Count the seconds on; in plain output, tell the stage and what is new if nothing was printed for PLAIN_S."""
        if self.moves:
            self._refresh()
        elif self._stage and time.monotonic() - self.screen.printed >= PLAIN_S:
            with self.screen:
                news = [line for line in self._lines if line not in self._told]
                self._told = self._lines
                for line in (f"now      {self._stage} … {self._elapsed()}", *news):
                    self.screen.print(line, soft_wrap=not self.screen.is_terminal)

    def close(self) -> None:
        """Remove the live lines and stop; safe to call twice."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)
        self._stage = ""
        with self.screen:
            self._live.stop()

    def _run(self) -> None:
        try:
            while not self._closed.wait(self._tick_s):
                self.tick()
        except (OSError, ValueError):  # the screen is gone, or lacks a character; the next line says so, if it matters
            return

    def _refresh(self) -> None:
        with self.screen:
            if self.moves:
                self._live.refresh()

    def _elapsed(self) -> str:
        return format_duration(time.monotonic() - self._began)

    def _draw(self) -> RenderableType:
        """Build the live lines: the stage above, so that a screen that is too low for all lines shows it."""
        stage = [f"now      {self._stage} … {self._elapsed()}"] if self._stage else []
        return Group(*stage, *([self._work] if self._work else []), *self._lines)


@contextlib.contextmanager
def shown(stage: str) -> Iterator[None]:
    """Show on standard output what the block does, and for how long."""
    with contextlib.closing(Ticker(Screen())) as ticker:
        ticker.begin(stage)
        yield
        ticker.end()
