"""Connect a study's record to Ray Tune: a searcher and a scheduler, both thin adapters, and `run_trials`.

The record decides which trial runs next and when a trial stops. Ray Tune only places trials and watches processes.
Processes of trials start, and import what trials need, while the study is still being prepared. Needs a Ray that this
process has joined. Knows no data set, no model and no MLflow.
"""

import gc
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.exceptions import OutOfMemoryError, RayError
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import ProgressReporter
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from study.config.plan import Plan
from study.errors import RecordError
from study.results.metrics import EpochResult, Evaluation, Progress
from study.results.record import TIME_IS_UP, Record
from study.training.run_trial import Failure, OpensTest, Report
from study.tuning.cluster import Allotment, describe_shortage
from study.tuning.stages import KEY, Stage, with_inputs
from study.tuning.trainable import trainable

RETRIES = 2
"""How often a trial is restarted after its process died."""
WAIT_S = 5.0
"""Seconds that a trial may wait for a process before listeners are told why."""


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


class _PastTune(BaseException):
    """Carry an error of the study out of Ray Tune, which would treat it as a trial's error and go on."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextmanager
def _past_tune() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _PastTune(error) from error


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

    @_past_tune()
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

    @_past_tune()
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """End the trial in the record, unless it has already ended there or will run again."""
        if trial_id not in self._running:  # a process has started ahead
            return
        plan = self._running.pop(trial_id)
        self._reporting.discard(trial_id)
        if not self.record.has_ended(plan) and plan not in self._to_repeat:
            if error:
                self._bury(plan)
            else:
                self.record.complete(plan)
        for listener in self.listeners:
            listener.on_change(plan)

    def _bury(self, plan: Plan) -> None:
        """Queue a trial whose process died to run again; after RETRIES restarts, let the trial fail.

        Ray Tune's own retries are not used: they count a process that dies between two trials as a failed retry.
        """
        self._deaths[plan.key] += 1
        if self._deaths[plan.key] > RETRIES:
            self.record.fail(plan, f"its process died {RETRIES + 1} times, for lack of memory perhaps.")
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

    @_past_tune()
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


class SilentReporter(ProgressReporter):
    """Reporter that shows nothing; Ray Tune's own for notebooks clears the cell's output, even with verbose=0."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Return False."""
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: str) -> None:
        """Show nothing."""


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

    @_past_tune()
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


def run_trials(
    prepare: Callable[[], Work],
    *,
    resources: Allotment,
    scratch: Path,
    ahead: bool = False,
    function: Callable[..., None] = trainable,
) -> None:
    """Prepare a study and run all trials that its record has waiting or proposes, on the Ray that this process joined.

    Processes of trials live on from stage to stage.

    Args:
        prepare: function that prepares the study; it is called once.
        resources: CPUs and GPUs of one trial, and the number of concurrent trials.
        scratch: directory for Ray Tune's own files, which nobody reads.
        ahead: whether the processes of trials start before the study is prepared. They take their CPUs and GPUs, so
            nobody else may need those.
        function: trainable that runs each trial, with the trial's configuration and its `inputs`.

    Raises:
        RecordError: the record, or a checkpoint that must be kept, can no longer be written.
        Exception: what `prepare` or the study's stages raise.
    """
    searcher = RecordSearcher(prepare, ahead=resources.concurrent if ahead else 0)
    try:
        while not searcher.finished:
            _run_tune(searcher, resources, scratch, function)
            searcher.end_waiting()
    finally:
        gc.unfreeze()


def _run_tune(searcher: RecordSearcher, resources: Allotment, scratch: Path, function: Callable[..., None]) -> None:
    """Run trials until all stages have ended, or the stopper ends the search, or Ray Tune gives up.

    Where Ray's memory monitor ends a process, or Ray loses one in another rare way, Ray Tune gives up all trials. The
    searcher will then hand them out again.
    """
    tuner = tune.Tuner(
        tune.with_resources(with_inputs(function), {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RecordScheduler(searcher, resources.concurrent),
            num_samples=-1,
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            storage_path=tempfile.mkdtemp(dir=scratch),
            stop=RecordStopper(searcher, partial(describe_shortage, resources)),
            verbose=0,
            progress_reporter=SilentReporter(),
        ),
    )
    try:
        tuner.fit()
    except _PastTune as past:
        raise past.error from None
    except RuntimeError as error:
        if not isinstance(error.__cause__, RayError):
            raise
        searcher.take_back(out_of_memory=isinstance(error.__cause__, OutOfMemoryError))
