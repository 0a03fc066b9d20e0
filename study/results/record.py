"""A study's one record: an Optuna journal, written by the driver alone; everything else is derived from it.

What a trial is (recipe, seed, stage) and what came of it (epochs, test, reason, seconds) are user attributes of its
Optuna trial. Knows neither Ray nor MLflow.
"""

import math
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import optuna
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from study.config.paths import check_new
from study.config.plan import Plan
from study.config.recipe import Recipe
from study.config.search_space import Budget, SearchSpace
from study.errors import RecordError
from study.results.journal import Journal
from study.results.metrics import EpochResult, Evaluation
from study.results.optuna_adapters import build_distributions, build_pruner, build_sampler
from study.results.trial_record import PRUNED, TrialRecord, read_trial
from study.seeding import derive_seed

BEAT_S = 60.0
"""Seconds between two notes that a study is being run: what a killed session may have spent beyond its budget."""


class Record:
    """The journal of one study, opened by the one process that may write it, or by any to read it.

    It holds two Optuna studies: the trials under the study's name, and the verdict's under `<name> final`, so that
    values of validation and of test never stand in one ranking.
    """

    def __init__(self, directory: Path, *, writable: bool) -> None:
        """Open a study that exists; `create`, `open` and `read` say what for.

        Raises:
            RecordError: there is no such study, it is damaged, or another process runs it.
        """
        self.directory = directory
        self.name = directory.name
        self._writable = writable
        self._lock = FileLock(directory / "lock")
        self._whole = threading.RLock()  # held while a step is half done: other threads read what is on disk
        if not (directory / "journal.log").is_file():
            raise RecordError(f"{directory}: must be a study's directory, but holds no journal.log.")
        if writable:
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise RecordError(f"{directory}: study {self.name!r} is being run by another process.") from None
        try:
            self._load()
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def create(
        cls,
        directory: Path,
        manifest: Mapping[str, Any],
        *,
        space: SearchSpace | None = None,
    ) -> Self:
        """Make a new study, whole or not at all, and open it to run it.

        Args:
            directory: of this study; made here, its last part is the study's name.
            manifest: what the study is (data, split, seed, weights, …), as JSON values.
            space: what a search proposes from, with its budget and pruner; None for fixed trials alone.

        Raises:
            RecordError: the study exists already, or its directory cannot be written.
        """
        check_new(directory)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent)) / directory.name
            try:
                draft.mkdir()
                journal = Journal(draft / "journal.log", writable=True)
                with journal.step():
                    storage = JournalStorage(journal)
                    study = optuna.create_study(storage=storage, study_name=directory.name, direction="maximize")
                    optuna.create_study(storage=storage, study_name=f"{directory.name} final", direction="maximize")
                    described = {"uid": uuid.uuid4().hex, **manifest, "space": space.to_dict() if space else None}
                    study.set_user_attr("manifest", described)
                draft.rename(directory)
            finally:
                shutil.rmtree(draft.parent, ignore_errors=True)
        except OSError as error:
            raise RecordError(f"{directory}: cannot be written ({error.strerror}). Run where you may write.") from None
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a study to go on with it: what was running when it ended is what `next_trial` gives first.

        Raises:
            RecordError: there is no such study, it is damaged, or another process runs it.
        """
        record = cls(directory, writable=True)
        record._sweep()
        record._take_up()
        return record

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Open a study to look at it, whoever runs it.

        Raises:
            RecordError: there is no such study, or it is damaged.
        """
        return cls(directory, writable=False)

    def _load(self) -> None:
        """Bring what is in memory to what is in the journal."""
        path = self.directory / "journal.log"
        self._journal = Journal(path, writable=self._writable)
        try:
            self._storage = JournalStorage(self._journal)
            self._trials = optuna.load_study(study_name=self.name, storage=self._storage)
            self._finals = optuna.load_study(study_name=f"{self.name} final", storage=self._storage)
            manifest = self.manifest
            self._space = SearchSpace.from_dict(manifest["space"]) if manifest["space"] else None
            self._seed = manifest.get("seed", 0)
            if self._space and (budget := self.noted("budget")):
                self._space = replace(self._space, budget=Budget(**budget))
            self._trials.pruner = build_pruner(self._space)
            self._ids = {
                read_trial(trial).plan.key: trial._trial_id
                for study in (self._trials, self._finals)
                for trial in study.get_trials(deepcopy=False)
            }
        except RecordError:
            raise
        except Exception as error:  # lines that are JSON and yet not Optuna's, or not ours, make it raise anything
            raise RecordError(
                f"{path}: must be a study's journal, but reading it fails ({type(error).__name__}: {error})."
                " Nothing was changed; restore the file from a copy, or begin a new study."
            ) from error

    @contextmanager
    def _step(self) -> Iterator[None]:
        """Write what happens inside at once; if it breaks off, in memory too nothing of it has happened."""
        with self._whole:
            try:
                with self._journal.step():
                    yield
            except BaseException:
                self._load()
                raise

    def _sweep(self) -> None:
        """Remove what sessions that were killed have left half written."""
        drafts = [draft.parent for draft in self.directory.parent.glob(f".{self.name}-*/{self.name}")]
        for draft in [*drafts, *self.directory.glob(".*")]:
            shutil.rmtree(draft, ignore_errors=True)
        for partial in self.directory.glob("*.partial"):
            partial.unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Begin a session: find what the last one left running, and end what it only forgot to end."""
        self._opened = self._beaten = time.monotonic()
        self._spent_before_s = self._measure_sessions()
        self._left: list[Plan] = []
        with self._step():
            self.note(f"session/{len(self._sessions())}", round(time.time() * 1000))
            for trial in self.all_trials():
                if trial.state != "running":
                    continue
                if trial.test or (trial.plan.stage == "search" and len(trial.epochs) == trial.plan.recipe.epochs):
                    self.complete(trial.plan)
                else:
                    self._left.append(trial.plan)

    @property
    def manifest(self) -> dict[str, Any]:
        """What the study is, as told when it was made."""
        manifest: dict[str, Any] = self._trials.user_attrs["manifest"]
        return manifest

    @property
    def space(self) -> SearchSpace | None:
        """What a search proposes from, with the budget that holds now; None for fixed trials alone."""
        return self._space

    @property
    def optuna_study(self) -> optuna.Study:
        """The trials as Optuna's plots and importances take them; not to be written to."""
        return self._trials

    def note(self, key: str, value: object) -> None:
        """Keep a fact about the study as a whole, as a JSON value."""
        self._trials.set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """Return what `note` kept; None where it kept nothing."""
        return self._trials.user_attrs.get(key)

    def set_budget(self, budget: Budget) -> None:
        """Let a search spend this from now on."""
        assert self._space
        if budget != self._space.budget:
            self.note("budget", asdict(budget))
            self._space = replace(self._space, budget=budget)

    def add(self, trials: Iterable[tuple[str, Recipe, int]]) -> None:
        """Plan fixed trials: (stage, recipe, seed) each; a search may propose what its space holds of them.

        Nothing happens to those that were planned before, so that a study that is resumed may plan again.
        """
        there = [(trial.plan.stage, trial.plan.recipe, trial.plan.seed) for trial in self.all_trials()]
        with self._step():
            for stage, recipe, seed in trials:
                if (stage, recipe, seed) in there:
                    continue
                proposal = {}
                if stage == "search" and self._space and self._space.contains(recipe):
                    proposal = {field: getattr(recipe, field) for field in self._space.domains}
                attributes = {"stage": stage, "recipe": recipe.to_dict(), "seed": seed}
                study = self._study_of(stage)
                study.enqueue_trial(proposal, user_attrs=attributes)
                self._remember(study.get_trials(deepcopy=False)[-1])

    def next_trial(self) -> Plan | None:
        """Return what the last session left running, the next planned trial, or the sampler's next proposal.

        None when all is done or the time is up.
        """
        if self._left:
            return self._left.pop(0)
        for study in (self._trials, self._finals):
            waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if waiting:
                held = bool(waiting[0].system_attrs["fixed_params"])
                with self._step():
                    trial = study.ask(build_distributions(self._space) if held and self._space else None)
                return read_trial(self._storage.get_trial(trial._trial_id)).plan
        if self._space is None or self.judging or self.time_is_up():
            return None
        number = len(self._trials.get_trials(deepcopy=False))
        if number >= self._space.budget.trials:
            return None
        self._trials.sampler = build_sampler(derive_seed(self._seed, "sampler", number))
        with self._step():
            trial = self._trials.ask(build_distributions(self._space))
            recipe = self._space.recipe(trial.params)
            for key, value in (("stage", "search"), ("recipe", recipe.to_dict()), ("seed", self._seed)):
                trial.set_user_attr(key, value)
        return self._remember(self._storage.get_trial(trial._trial_id))

    @property
    def judging(self) -> bool:
        """Whether the verdict's trials are planned: from then on nothing more is searched."""
        return bool(self._finals.get_trials(deepcopy=False))

    def _reason_to_stop(self, plan: Plan, result: EpochResult) -> str | None:
        """Say why a trial of a search should end after the epoch that it has just reported; None if it should not."""
        if self._space is None or plan.stage != "search" or result.epoch >= plan.recipe.epochs:
            return None
        if self.time_is_up():
            return "the time budget is spent"
        behind = self._running(plan).should_prune()  # asked of trial 0 too: the pruner ranks only whom it was asked of
        # Trial 0 is the baseline: what all others are measured against runs to its end.
        return PRUNED if behind and plan.number else None

    def time_is_up(self) -> bool:
        """Tell whether a search's time budget is spent."""
        limit = self._space.budget.time_s if self._space else None
        return limit is not None and self.spent_s >= limit

    @property
    def spent_s(self) -> float:
        """Wall-clock seconds in which the study was run, all sessions together."""
        return self._spent_before_s + time.monotonic() - self._opened

    def importances(self) -> dict[str, float]:
        """Return how much each searched field mattered for validation accuracy, in [0, 1], together 1 (fANOVA)."""
        assert self._space
        fields = list(self._space.domains)
        complete = self._trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len({trial.value for trial in complete if set(fields) <= set(trial.params)}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(self._trials, evaluator=evaluator, params=fields))

    def epoch(self, plan: Plan, result: EpochResult) -> str | None:
        """Keep an epoch of a running trial; if it should stop now, end it and say why.

        An epoch that is told again, by a trial that had to start anew, changes nothing.
        """
        if any(known.epoch == result.epoch for known in self.trial(plan).epochs):
            return None
        with self._step():
            trial = self._running(plan)
            trial.set_user_attr(f"epoch/{result.epoch}", {**asdict(result), "ended_ms": round(time.time() * 1000)})
            if result.val_accuracy is not None:
                trial.report(result.val_accuracy, result.epoch)
            reason = self._reason_to_stop(plan, result)
            if reason:
                self.prune(plan, reason)
        return reason

    def beat(self) -> None:
        """Keep that the study is being run, once a minute at most: the time of a killed session counts until then."""
        if time.monotonic() - self._beaten >= BEAT_S:
            self._beaten = time.monotonic()
            self.note(f"seen/{len(self._sessions()) - 1}", round(time.time() * 1000))

    def open_test(self, plan: Plan) -> None:
        """Keep that a trial is about to see the test images; one that has to start again may see them twice."""
        opened = self.trial(plan).tests_opened
        self._running(plan).set_user_attr(f"test_opened/{opened}", round(time.time() * 1000))

    def tested(self, plan: Plan, test: Evaluation) -> None:
        """Keep what a trial made of the test images."""
        self._running(plan).set_user_attr("test", asdict(test))

    def facts(self, plan: Plan, facts: Mapping[str, Any]) -> None:
        """Keep what a trial's process said of itself."""
        self._running(plan).set_user_attr("facts", dict(facts))

    def complete(self, plan: Plan) -> None:
        """End a trial with its objective: its test accuracy, or where it was not tested the last on validation."""
        trial = self.trial(plan)
        value = trial.test.accuracy if trial.test else trial.val_accuracy
        if value is None or (plan.stage == "final" and not trial.test):
            self.fail(plan, "it ended without a result.")
        else:
            self._study_of(plan.stage).tell(plan.number, value)
            self._drop_checkpoint(plan)

    def prune(self, plan: Plan, reason: str) -> None:
        """End a trial that was stopped early: its last score is no final one."""
        self._end(plan, TrialState.PRUNED, reason)

    def fail(self, plan: Plan, reason: str) -> None:
        """End a trial that could not be finished."""
        self._end(plan, TrialState.FAIL, reason)

    def trial(self, plan: Plan) -> TrialRecord:
        """Return one trial as it stands."""
        with self._whole:
            return read_trial(self._storage.get_trial(self._ids[plan.key]))

    def trials(self) -> list[TrialRecord]:
        """Return all trials as they stand, by number; the verdict's are not among them."""
        with self._whole:
            return [read_trial(trial) for trial in self._trials.get_trials(deepcopy=False)]

    def finals(self) -> list[TrialRecord]:
        """Return the verdict's trials as they stand, by number."""
        with self._whole:
            return [read_trial(trial) for trial in self._finals.get_trials(deepcopy=False)]

    def all_trials(self) -> list[TrialRecord]:
        """Return all trials as they stand, those of the verdict last."""
        return [*self.trials(), *self.finals()]

    @property
    def checkpoints(self) -> Path:
        """Where trials keep their weights: the verdict's until the study ends, all others as long as they run."""
        return self.directory / "checkpoints"

    def close(self) -> None:
        """Let another process have the study."""
        self._lock.release()

    def _study_of(self, stage: str) -> optuna.Study:
        return self._finals if stage == "final" else self._trials

    def _end(self, plan: Plan, state: TrialState, reason: str) -> None:
        with self._step():
            self._running(plan).set_user_attr("reason", reason)
            self._study_of(plan.stage).tell(plan.number, state=state)
        self._drop_checkpoint(plan)

    def _drop_checkpoint(self, plan: Plan) -> None:
        if plan.stage != "final":
            (self.checkpoints / plan.checkpoint).unlink(missing_ok=True)

    def _running(self, plan: Plan) -> optuna.Trial:
        return optuna.Trial(self._study_of(plan.stage), self._ids[plan.key])

    def _remember(self, trial: FrozenTrial) -> Plan:
        plan = read_trial(trial).plan
        self._ids[plan.key] = trial._trial_id
        return plan

    def _sessions(self) -> list[int]:
        """Return when each session began, in milliseconds since 1970."""
        begun = [value for key, value in self._trials.user_attrs.items() if key.startswith("session/")]
        return sorted(begun)

    def _measure_sessions(self) -> float:
        """Return the seconds from the beginning of each former session to the last that is known of it."""
        known = [
            moment
            for trial in self.all_trials()
            for moment in (trial.started_ms, trial.ended_ms, *trial.epoch_ends_ms)
            if moment is not None
        ]
        known += [value for key, value in self._trials.user_attrs.items() if key.startswith("seen/")]
        begun = self._sessions()
        spent_ms = 0.0
        for start, end in pairwise([*begun, math.inf]):
            spent_ms += max((moment - start for moment in known if start <= moment < end), default=0)
        return spent_ms / 1000
