"""The study's record ↔ Ray Tune: a searcher and a scheduler, both thin adapters, and the run that joins them.

The record decides what is run next and when a trial ends; Ray Tune only places, watches and restarts.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from study.config import Plan
from study.record import Record
from study.trainable import Facts, Failure, Inputs, trainable
from study.training import EpochResult, Evaluation, Progress

RETRIES = 2
"""How often a trial is started again after its process died."""


class Listener(Protocol):
    """Whoever wants to know that a trial has changed; called by the driver's main thread, so it must be quick."""

    def on_start(self, plan: Plan) -> None:
        """A trial was handed to Ray Tune."""

    def on_progress(self, number: int, progress: Progress) -> None:
        """An epoch of a trial goes on."""

    def on_change(self, number: int) -> None:
        """The record of a trial has changed."""


class RecordSearcher(Searcher):
    """Gives Ray Tune what the record has planned, and tells the record how it ended."""

    def __init__(self, record: Record, listeners: Sequence[Listener]) -> None:
        """Serve the trials of `record`."""
        super().__init__()
        self._record = record
        self._listeners = listeners
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]  # Ray's hint forgets FINISHED
        """Return the next trial's configuration, or FINISHED."""
        plan = self._record.next_trial()
        if plan is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = plan.number
        for listener in self._listeners:
            listener.on_start(plan)
        return {"plan": plan}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial in the record, unless a reported failure has ended it already."""
        number = self._numbers.pop(trial_id)
        if not self._record.trial(number).finished:
            if error:
                self._record.fail(number, f"its process died {RETRIES + 1} times.")
            else:
                self._record.complete(number)
        for listener in self._listeners:
            listener.on_change(number)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the record is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the record is the only state."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing in the pickles that Ray Tune writes, and that nobody reads."""
        return {}


class RecordScheduler(FIFOScheduler):
    """Writes each report of a trial into the record, before Ray Tune lets the trial go on."""

    def __init__(self, record: Record, listeners: Sequence[Listener]) -> None:
        """Write into `record`."""
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's own
        self._record = record
        self._listeners = listeners

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Keep one report."""
        number = trial.config["plan"].number
        report = result["report"]
        match report:
            case Progress():
                for listener in self._listeners:
                    listener.on_progress(number, report)
                return TrialScheduler.CONTINUE
            case Facts():
                self._record.facts(number, asdict(report))
            case EpochResult():
                self._record.epoch(number, report)
            case Evaluation():
                self._record.tested(number, report)
            case Failure():
                self._record.fail(number, report.reason)
        for listener in self._listeners:
            listener.on_change(number)
        return TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing in the pickles that Ray Tune writes, and that nobody reads."""
        return {}


def run_trials(
    record: Record,
    inputs: Inputs,
    listeners: Sequence[Listener],
    *,
    cpus_per_trial: float,
    gpus_per_trial: float,
    concurrent: int,
    scratch: Path,
) -> None:
    """Run all that the record has planned, at most `concurrent` trials at a time, on the Ray that is joined.

    Args:
        record: gives the trials and takes what comes of them.
        inputs: shared by all trials through Ray's object store.
        listeners: told of every change, after the record.
        cpus_per_trial: cores reserved for a trial.
        gpus_per_trial: GPUs reserved for a trial, a fraction where several share one.
        concurrent: trials at a time.
        scratch: for Ray Tune's own files, which nobody reads.
    """
    function = tune.with_parameters(trainable, inputs=inputs)
    tuner = tune.Tuner(
        tune.with_resources(function, {"cpu": cpus_per_trial, "gpu": gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=RecordSearcher(record, listeners),
            scheduler=RecordScheduler(record, listeners),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=record.name,
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    tuner.fit()
