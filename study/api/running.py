"""Run planned studies inside a Python program or a notebook, and leave the process as it was."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from study.api.notebook import CellOutput, notebook_screen
from study.api.planning import Job
from study.api.session import process_restored, run_job
from study.environment import keep_loopback_direct

if TYPE_CHECKING:
    from study.tuning.finish_study import StudyResult


def run_here(plan: Callable[[], Job]) -> "StudyResult":
    """Plan a study and run it; a notebook's cell shows its progress, standard output does elsewhere.

    Raises:
        StudyError: the study cannot begin or go on.
        KeyboardInterrupt: the user stopped it; Ray has ended, the record is kept.
    """
    screen = notebook_screen()
    try:
        with process_restored(), interrupted_once():
            job = plan()
            keep_loopback_direct()
            return run_job(job, screen)
    finally:
        if screen and isinstance(output := screen.file, CellOutput):
            output.show()


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Let the first Ctrl-C, or a notebook's interrupt, raise KeyboardInterrupt, and ignore later ones until the end.

    So an impatient second one cannot break the end of Ray off. Does nothing outside of the main thread.
    """

    def interrupt(number: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
