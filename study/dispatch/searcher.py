"""Give Ray Tune the trials of a study's record, stage by stage, and write into the record how they ended.

The record decides which trial runs next. Knows no data set, no model and no MLflow.
"""

import gc
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ray.tune.search import Searcher

from study.config.plan import Plan
from study.dispatch.stages import KEY, Stage
from study.results.metrics import Progress
from study.results.record import TIME_IS_UP, Record

RETRIES = 2
"""How often a trial is restarted after its process died."""
_ERROR = re.compile(
    r'^ +File "(?P<file>[^"]+)", line .*\n(?: {4}.*\n)*(?P<error>(?!ray\.)\w[\w.]*(?:: .*)?)$', re.MULTILINE
)
"""The end of a traceback, unless its error is one of Ray's own."""


class Listener(Protocol):
    """Callbacks for changes of trials; they block the driver's main thread, so they must be quick."""

    def on_start(self, plan: Plan) -> None:
        """Called when a trial is handed to Ray Tune, for the first time or to be run again."""

    def on_wait(self, plan: Plan, shortage: str) -> None:
        """Called when a trial cannot start, with what it waits for."""

    def on_progress(self, plan: Plan, progress: Progress) -> None:
        """Called while an epoch of a trial is in progress."""

    def on_change(self, plan: Plan) -> None:
        """Called after the record of a trial has changed."""


@dataclass(frozen=True)
class Work:
    """What Ray Tune needs of a study that is prepared."""

    record: Record
    """Source of the trials and store of their results."""
    stages: Iterable[Stage]
    """Images and settings of the trials. The first are for the trials that the record has now. When those have ended,
    the iterator goes on: it may add further trials, and gives their inputs, with the same weights."""
    listeners: Sequence[Listener] = ()
    """Receivers of callbacks, called after the record is written."""


class PastTune(BaseException):
    """Carry an error of the study out of Ray Tune, which would treat it as a trial's error and go on."""

    def __init__(self, error: Exception) -> None:
        """Carry `error`."""
        self.error = error


@contextmanager
def past_tune() -> Iterator[None]:
    """Carry errors out of Ray Tune, which calls the function."""
    try:
        yield
    except Exception as error:
        raise PastTune(error) from error


class RecordSearcher(Searcher):
    """Give Ray Tune the record's next trial, stage by stage, and write into the record how a trial ended."""

    def __init__(self, prepare: Callable[[], Work], *, ahead: int = 0) -> None:
        """Serve the trials of the study that `prepare` returns; when it has none to run, go on to its next stage.

        Args:
            prepare: called once, when the first trial is asked for, or by `begin`.
            ahead: number of processes that are started before that.
        """
        super().__init__()
        self._prepare = prepare
        self._ahead = ahead
        self._work: Work | None = None
        self._stages: Iterator[Stage] = iter(())
        self._stage: Stage | None = None
        self.finished = False
        """Whether the trials of all stages have ended."""
        self._running: dict[str, Plan] = {}
        self._reporting: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._reports: dict[str, str] = {}
        self._to_restart: list[Plan] = []
        self._to_repeat: list[Plan] = []
        self._repeated: set[str] = set()

    def begin(self) -> None:
        """Prepare the study and its first stage, unless that was done."""
        if self._work is None:
            self._work = self._prepare()
            gc.freeze()  # collecting what was imported stops all threads for 0.3 s, again and again
            self._stages = iter(self._work.stages)
            self._begin_stage()

    @property
    def record(self) -> Record:
        """Record of the study, which must have begun."""
        assert self._work, "the study must be prepared"
        return self._work.record

    @property
    def listeners(self) -> Sequence[Listener]:
        """Receivers of callbacks; none before the study has begun."""
        return self._work.listeners if self._work else ()

    @past_tune()
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's type omits FINISHED
        """Return the next trial's configuration, FINISHED, or None to be asked again later."""
        if self._ahead:
            self._ahead -= 1
            return {KEY: None}
        self.begin()
        plan = self._next()
        while plan is None and not self._running and self._begin_stage():
            plan = self._next()
        if plan is None:
            # A running trial may have to run again, but after FINISHED Ray Tune asks for no more trials.
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = plan
        for listener in self.listeners:
            listener.on_start(plan)
        return {"plan": plan, KEY: self._stage}

    def _begin_stage(self) -> bool:
        """Begin the next stage, which may add trials to the record, and return whether there is one."""
        self._stage = next(self._stages, None)
        self.finished = self._stage is None
        return not self.finished

    def _next(self) -> Plan | None:
        """Return the stage's plan to run now, if any; a repeated trial runs only while no other trial runs."""
        if self._repeating:
            return None
        if self._to_restart:
            return self._to_restart.pop(0)
        if self._to_repeat:
            return None if self._running else self._to_repeat.pop()
        return self.record.next_trial()

    @property
    def repeats(self) -> bool:
        """Whether a trial that ran out of memory runs again, or is about to."""
        return bool(self._to_repeat) or self._repeating

    @property
    def _repeating(self) -> bool:
        return any(plan.key in self._repeated for plan in self._running.values())

    @property
    def waiting(self) -> list[Plan]:
        """Trials that were handed to Ray Tune and have reported nothing yet."""
        return [plan for key, plan in self._running.items() if key not in self._reporting]

    @property
    def reporting(self) -> bool:
        """Whether a process of a trial is at work."""
        return bool(self._reporting)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note that a trial has a process."""
        self._reporting.add(trial_id)

    def repeat_alone(self, plan: Plan) -> bool:
        """Queue a trial that ran out of memory to run again alone; return False if it was queued before."""
        if plan.key in self._repeated:
            return False
        self._repeated.add(plan.key)
        self._to_repeat.append(plan)
        return True

    def note_death(self, trial_id: str, report: str) -> None:
        """Keep Ray's report on the end of a trial's process until the trial ends."""
        self._reports[trial_id] = report

    @past_tune()
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial in the record, unless it has already ended there or will run again."""
        if trial_id not in self._running:  # a process has started ahead
            return
        plan = self._running.pop(trial_id)
        self._reporting.discard(trial_id)
        report = self._reports.pop(trial_id, "")
        if not self.record.has_ended(plan) and plan not in self._to_repeat:
            if error:
                self._bury(plan, report)
            else:
                self.record.complete(plan)
        for listener in self.listeners:
            listener.on_change(plan)

    def _bury(self, plan: Plan, report: str = "") -> None:
        """Queue a trial whose process died to run again; after RETRIES restarts, let the trial fail.

        Ray Tune's own retries are not used: they count a process that dies between two trials as a failed retry.
        """
        self._deaths[plan.key] += 1
        if self._deaths[plan.key] > RETRIES:
            self.record.fail(plan, f"its process died {RETRIES + 1} times, {_describe(report)}.")
        elif plan.key in self._repeated:
            self._to_repeat.append(plan)
        else:
            self._to_restart.append(plan)

    def take_back(self, *, out_of_memory: bool) -> None:
        """Take back the running trials, to hand them out again: alone, or as if their processes had died."""
        for plan in self._running.values():
            if self.record.has_ended(plan) or plan in self._to_repeat:
                continue
            if not out_of_memory:
                self._bury(plan)
            elif not self.repeat_alone(plan):
                self.record.fail(
                    plan, "out of memory: Ray ended its process twice, the second time while it ran alone."
                )
            for listener in self.listeners:
                listener.on_change(plan)
        self._running.clear()
        self._reporting.clear()

    def end_waiting(self) -> None:
        """End the trials that still waited for resources when the time of the search was up."""
        for plan in self.waiting:
            self.record.prune(plan, TIME_IS_UP)
            for listener in self.listeners:
                listener.on_change(plan)
        self._running.clear()

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the record is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the record is the only state."""

    def __getstate__(self) -> dict[str, Any]:
        """Keep all state out of Ray Tune's pickles, which nobody reads."""
        return {}


def _describe(report: str) -> str:
    """Return why a process died: the first error in Ray's report, such as one in a module that the process imports."""
    found = _ERROR.search(report)
    return f"the last time by {found['error']}, in {found['file']}" if found else "for lack of memory perhaps"
