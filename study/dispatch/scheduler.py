"""Write the reports of trials into a study's record, and stop what the record decides to stop.

The record decides when a trial stops; Ray Tune asks the classes of this module. Knows no data set, no model and no
MLflow.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.stopper import Stopper

from study.config.plan import Plan
from study.dispatch.searcher import RecordSearcher, past_tune
from study.errors import RecordError
from study.results.metrics import EpochResult, Evaluation, Progress
from study.results.record import Record
from study.training.run_trial import Failure, OpensTest, Report

WAIT_S = 5.0
"""Seconds that a trial may wait for a process before listeners are told why."""


class RecordScheduler(FIFOScheduler):
    """Write each report of a trial into the record before the trial goes on; stop a trial if the record decides so."""

    def __init__(self, searcher: RecordSearcher, processes: int) -> None:
        """Write into the record of `searcher`, which repeats trials that ran out of memory; keep so many processes."""
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's __init__ has no types
        self._searcher = searcher
        self._processes = processes
        self._kept = 0
        self._added: list[Trial] = []

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Note a new trial, which needs a process."""
        self._keep_processes(tune_controller, trial)
        self._added.append(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the next new trial, which takes an idle process if there is one, and otherwise starts one.

        Ray Tune's own scheduler gives an idle process to a trial whose process is starting, and ends that one. Then the
        new trial has to start another, and where trials are short, no second process ever gets ready.
        """
        while self._added:
            trial = self._added.pop(0)
            if trial.status == Trial.PENDING:
                return trial
        return None

    def _keep_processes(self, tune_controller: Any, trial: Trial) -> None:
        """Let Ray Tune keep all processes that have no trial for a moment; by itself it keeps one and ends the others.

        Two trials that end at the same time, or at the end of a stage, would leave one process, and a second one needs
        seconds to start. While a trial runs alone because memory was short, Ray Tune does what it does by itself.
        """
        wanted = 0 if self._searcher.repeats or self._processes == 1 else self._processes
        # Private, and the only way. With a Ray that has it no more, processes would only start more often.
        cache = getattr(getattr(tune_controller, "_tune_controller", None), "_actor_cache", None)
        if cache is not None and wanted != self._kept:
            cache.increase_max(trial.placement_group_factory, wanted - self._kept)
            self._kept = wanted

    @past_tune()
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Write one report into the record, and return whether the trial goes on."""
        plan, record = trial.config["plan"], self._searcher.record
        report = result["report"]
        if record.has_ended(plan):  # its process died before Ray Tune noticed the trial's end
            return TrialScheduler.STOP
        if isinstance(report, Failure) and report.stops_study:
            raise RecordError(report.reason)
        with record.step():
            if "facts" in result:
                record.facts(plan, asdict(result["facts"]))
            self._write(record, plan, report)
        self._keep_processes(tune_controller, trial)
        if record.has_ended(plan):  # its process need not say so: it begins the next trial the sooner
            return TrialScheduler.STOP  # Ray Tune then tells the searcher, which tells the listeners
        for listener in self._searcher.listeners:
            if isinstance(report, Progress):
                listener.on_progress(plan, report)
            elif not isinstance(report, OpensTest):
                listener.on_change(plan)
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Give the searcher Ray's report on the end of a trial's process; Ray Tune only says that it ended."""
        with suppress(OSError, TypeError):  # a file of Ray's own, which it may not have written
            report = Path(trial.error_file).read_text(encoding="utf-8", errors="replace")  # of any locale
            self._searcher.note_death(trial.trial_id, report)

    def _write(self, record: Record, plan: Plan, report: Report) -> None:
        """Write a report into the record; after its last result, a trial is complete."""
        match report:
            case Progress():
                record.beat()
            case EpochResult():
                record.epoch(plan, report)
            case OpensTest():
                record.open_test(plan)
            case Evaluation():
                record.tested(plan, report)
            case Failure():
                if not (report.out_of_memory and self._searcher.repeat_alone(plan)):
                    record.fail(plan, report.reason)
        trial = record.trial(plan)
        if trial.has_all_results and not trial.finished:
            record.complete(plan)

    def __getstate__(self) -> dict[str, Any]:
        """Keep all state out of Ray Tune's pickles, which nobody reads."""
        return {}


class RecordStopper(Stopper):
    """Say which trials wait for CPU cores or GPUs, and end a search whose time is up while all its trials wait."""

    def __init__(self, searcher: RecordSearcher, shortage: Callable[[], str | None]) -> None:
        """Watch the trials of `searcher`; `shortage` describes what keeps a trial from starting now, if anything."""
        self._searcher = searcher
        self._shortage = shortage
        self._since = time.monotonic()
        self._told: set[str] = set()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial: the scheduler does that."""
        return False

    @past_tune()
    def stop_all(self) -> bool:
        """Return whether to end; Ray Tune asks about ten times a second, for the first time once processes start."""
        self._searcher.begin()
        record, waiting = self._searcher.record, self._searcher.waiting
        if not waiting or self._searcher.reporting:
            self._since = time.monotonic()
            return False
        record.beat()
        if time.monotonic() - self._since < WAIT_S:
            return False
        self._since = time.monotonic()
        shortage = self._shortage()
        if shortage is None:  # the trial's process is starting
            return False
        if record.time_is_up() and not record.judging:
            return True
        for plan in waiting:
            if plan.key not in self._told:
                self._told.add(plan.key)
                for listener in self._searcher.listeners:
                    listener.on_wait(plan, shortage)
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Keep all state out of Ray Tune's pickles, which nobody reads."""
        return {}
