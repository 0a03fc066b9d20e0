"""The study's record ↔ Ray Tune: a searcher and a scheduler, both thin adapters, and the run that joins them.

The record decides what is run next and when a trial ends; Ray Tune only places, watches and restarts.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.cluster import Allotment
from study.config import Plan
from study.errors import RecordError, StudyError
from study.record import Record
from study.trainable import Facts, Failure, Inputs, OpensTest, trainable
from study.training import EpochResult, Evaluation, Progress

RETRIES = 2
"""How often a trial is started again after its process died."""


class Listener(Protocol):
    """Whoever wants to know that a trial has changed; called by the driver's main thread, so it must be quick."""

    def on_start(self, plan: Plan) -> None:
        """A trial was handed to Ray Tune, for the first time or because its process died."""

    def on_progress(self, plan: Plan, progress: Progress) -> None:
        """An epoch of a trial goes on."""

    def on_change(self, plan: Plan) -> None:
        """The record of a trial has changed."""


class _PastTune(BaseException):
    """Carries an error of the study out of Ray Tune, which would take any Exception for a trial's own and go on."""

    def __init__(self, error: StudyError) -> None:
        self.error = error


@contextmanager
def _past_tune() -> Iterator[None]:
    try:
        yield
    except StudyError as error:
        raise _PastTune(error) from error


class RecordSearcher(Searcher):
    """Gives Ray Tune what the record wants next, and tells the record how it ended."""

    def __init__(self, record: Record, listeners: Sequence[Listener]) -> None:
        """Serve the trials of `record`."""
        super().__init__()
        self._record = record
        self._listeners = listeners
        self._running: dict[str, Plan] = {}
        self._deaths: Counter[str] = Counter()
        self._to_restart: list[Plan] = []
        self._to_repeat: list[Plan] = []
        self._repeated: set[str] = set()

    @_past_tune()
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's hint forgets FINISHED
        """Return the next trial's configuration, FINISHED, or None to be asked again later."""
        plan = self._next()
        if plan is None:
            # A running trial may yet have to be repeated, which Ray Tune would not ask for once it is FINISHED.
            return None if self._running else Searcher.FINISHED
        self._running[trial_id] = plan
        for listener in self._listeners:
            listener.on_start(plan)
        return {"plan": plan}

    def _next(self) -> Plan | None:
        """Return what is to be run now: a repeated trial only when no other runs, and no other beside it."""
        if any(plan.key in self._repeated for plan in self._running.values()):
            return None
        if self._to_restart:
            return self._to_restart.pop(0)
        if self._to_repeat:
            return None if self._running else self._to_repeat.pop()
        return self._record.next_trial()

    def repeat_alone(self, plan: Plan) -> bool:
        """Run a trial that lacked memory once more when no other runs; False if that was tried already."""
        if plan.key in self._repeated:
            return False
        self._repeated.add(plan.key)
        self._to_repeat.append(plan)
        return True

    @_past_tune()
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial in the record, unless it has ended there already or is to be run once more."""
        plan = self._running.pop(trial_id)
        if not self._record.trial(plan).finished and plan not in self._to_repeat:
            if error:
                self._bury(plan)
            else:
                self._record.complete(plan)
        for listener in self._listeners:
            listener.on_change(plan)

    def _bury(self, plan: Plan) -> None:
        """Let a trial whose process has died start again, or fail if that did not help.

        Ray Tune's own retries count a process that dies between two trials as the death of a retry.
        """
        self._deaths[plan.key] += 1
        if self._deaths[plan.key] > RETRIES:
            self._record.fail(plan, f"its process died {RETRIES + 1} times, for lack of memory perhaps.")
        elif plan.key in self._repeated:
            self._to_repeat.append(plan)
        else:
            self._to_restart.append(plan)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the record is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the record is the only state."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing in the pickles that Ray Tune writes, and that nobody reads."""
        return {}


class RecordScheduler(FIFOScheduler):
    """Writes each report of a trial into the record, before Ray Tune lets the trial go on, and asks it when to stop."""

    def __init__(self, record: Record, searcher: RecordSearcher, listeners: Sequence[Listener]) -> None:
        """Write into `record`; `searcher` repeats what lacked memory."""
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's own
        self._record = record
        self._searcher = searcher
        self._listeners = listeners

    @_past_tune()
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Keep one report; stop the trial if the record says so."""
        plan = trial.config["plan"]
        report = result["report"]
        decision = TrialScheduler.CONTINUE
        if self._record.trial(plan).finished:  # its process died before Ray Tune heard that it had ended
            return TrialScheduler.STOP
        match report:
            case Progress():
                self._record.beat()
                for listener in self._listeners:
                    listener.on_progress(plan, report)
                return decision
            case Facts():
                self._record.facts(plan, asdict(report))
            case EpochResult():
                if self._record.epoch(plan, report):
                    decision = TrialScheduler.STOP
            case OpensTest():
                self._record.open_test(plan)
                return decision
            case Evaluation():
                self._record.tested(plan, report)
            case Failure(stops_study=True):
                raise RecordError(report.reason)
            case Failure():
                if not (report.out_of_memory and self._searcher.repeat_alone(plan)):
                    self._record.fail(plan, report.reason)
        for listener in self._listeners:
            listener.on_change(plan)
        return decision

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing in the pickles that Ray Tune writes, and that nobody reads."""
        return {}


def run_trials(
    record: Record,
    inputs: Inputs,
    listeners: Sequence[Listener],
    *,
    resources: Allotment,
    scratch: Path,
    function: Callable[..., None] = trainable,
) -> None:
    """Run all that the record has to run on the Ray that is joined.

    Args:
        record: gives the trials and takes what comes of them.
        inputs: shared by all trials through Ray's object store.
        listeners: told of every change, after the record.
        resources: reserved for a trial, and how many run at once.
        scratch: for Ray Tune's own files, which nobody reads.
        function: run for each trial, with its configuration and `inputs`.

    Raises:
        RecordError: the record, or the weights that a trial has to leave, cannot be written any more.
    """
    searcher = RecordSearcher(record, listeners)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(function, inputs=inputs),
            {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RecordScheduler(record, searcher, listeners),
            num_samples=-1,
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=record.name,
            storage_path=tempfile.mkdtemp(dir=scratch),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except _PastTune as past:
        raise past.error from None
