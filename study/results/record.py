"""Keep the record of a study: an Optuna journal that only the driver writes; everything else is derived from it.

Each Optuna trial stores its plan (recipe, seed, stage) and its results (epochs, test, reason) as user attributes.
This module knows neither Ray nor MLflow.
"""

import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import optuna
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from study.config.manifest import Manifest
from study.config.paths import check_new
from study.config.plan import Plan
from study.config.search_space import Budget, SearchSpace
from study.errors import RecordError
from study.files import PARTIAL, new_directory, replace_file
from study.results.arrays import find_arrays, plain, store_arrays
from study.results.clock import StudyClock, measure_sessions
from study.results.journal import Journal
from study.results.metrics import EpochResult, Evaluation, guess, score
from study.results.optuna_adapters import build_distributions, build_pruner, propose
from study.results.trial_record import PRUNED, TrialRecord, read_trial
from study.seeding import derive_seed

TIME_IS_UP = "the time budget is spent"
"""The reason recorded for a trial that the time budget stopped."""
COPY = "copy_uid"
"""Key of the id that a copy of a study has in MLflow, so that its runs are not those of the original."""
MODELS = "models"
"""Key of the models that a search still considers after their probes."""
PLACES = "places"
"""Key of the places of images and weights that were moved since the study began, by the manifest's fields."""
SPENT = "spent_s"
"""Key of the seconds that the study has run, at the last recorded moment."""


class Record:
    """The journal of one study. One process may open it for writing; any process may open it for reading.

    The journal holds an Optuna study for the trials under the name that the study began with, and one for each stage
    before and after them that the design has: `<name> screen`, `<name> rerank` and `<name> final`. So probes,
    validation accuracies, their means and test accuracies are never ranked together. The directory may be renamed,
    moved and copied.
    """

    def __init__(self, directory: Path, *, writable: bool) -> None:
        """Open an existing study; callers use `create`, `open` or `read`.

        Raises:
            RecordError: the study does not exist, is damaged, or is being run by another process.
        """
        self.directory = directory
        self.name = directory.name
        self.manifest: Manifest
        self._writable = writable
        self._lock = FileLock(directory / "lock")
        self._whole = threading.RLock()  # held during a step: other threads read only whole steps
        self._guess: float | None = None  # of a search, whose validation images stay the same; None until needed
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
        manifest: Manifest,
    ) -> Self:
        """Create a study, completely or not at all, and open it for running.

        Args:
            directory: directory to create for the study; its last part is the study's name.
            manifest: what the study is; its design's space, if there is one, is searched.

        Raises:
            RecordError: the study exists already, or its directory cannot be written.
        """
        check_new(directory)
        try:
            with new_directory(directory) as draft:
                journal = Journal(draft / "journal.log", writable=True)
                with journal.step():
                    storage = JournalStorage(journal)
                    study = optuna.create_study(storage=storage, study_name=directory.name, direction="maximize")
                    for stage in _stages(manifest):
                        optuna.create_study(
                            storage=storage, study_name=f"{directory.name} {stage}", direction="maximize"
                        )
                    study.set_user_attr("manifest", manifest.to_dict())
        except OSError as error:
            raise RecordError(
                f"{directory}: must be writable, but got: {error.strerror}. Run in a directory where you may write."
            ) from None
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a study to run it; `next_trial` first returns the trials that the last session left running.

        Raises:
            RecordError: the study does not exist, is damaged, or is being run by another process.
        """
        record = cls(directory, writable=True)
        record._sweep()
        record._take_up()
        return record

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Open a study for reading, even while another process runs it.

        Raises:
            RecordError: the study does not exist, or is damaged.
        """
        return cls(directory, writable=False)

    def _load(self) -> None:
        """Set the state in memory to the state of the journal."""
        path = self.directory / "journal.log"
        self._journal = Journal(path, writable=self._writable)
        try:
            self._storage = JournalStorage(self._journal)
            self._begun_as = optuna.get_all_study_names(self._storage)[0]
            self._trials = optuna.load_study(study_name=self._begun_as, storage=self._storage)
            manifest = Manifest.from_dict(self._trials.user_attrs["manifest"])
            self.manifest = replace(manifest, **(self.noted(PLACES) or {}))
            self._stages = {
                stage: optuna.load_study(study_name=f"{self._begun_as} {stage}", storage=self._storage)
                for stage in _stages(self.manifest)
            }
            self._space = self.manifest.design.space
            if self._space and (budget := self.noted("budget")):
                self._space = replace(self._space, budget=Budget(**budget))
            if self._space and (models := self.noted(MODELS)):
                self._space = self._space.with_models(models)
            self._ids = {
                self._read(trial).plan.key: trial._trial_id
                for study in (self._trials, *self._stages.values())
                for trial in study.get_trials(deepcopy=False)
            }
        except RecordError:
            raise
        except Exception as error:  # valid JSON that neither Optuna nor we wrote can raise anything
            raise RecordError(
                f"{path}: must be a study's journal, but reading it fails ({type(error).__name__}: {error})."
                f"{_foreign_version(path)} The file was not changed. Restore it from a copy, or begin a new study."
            ) from error

    @contextmanager
    def step(self) -> Iterator[None]:
        """Write all changes made inside at once; if the body raises, undo the changes in memory too."""
        with self._whole:
            try:
                with self._journal.step():
                    yield
            except BaseException:
                self._load()
                raise

    def _sweep(self) -> None:
        """Remove files that killed sessions left half written."""
        drafts = [draft.parent for draft in self.directory.parent.glob(f".{self.name}-*/{self.name}")]
        for draft in [*drafts, *self.directory.glob(".*")]:
            shutil.rmtree(draft, ignore_errors=True)
        for partial in self.directory.glob(f"*{PARTIAL}"):
            partial.unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Begin a session: collect the trials that are still running; complete those that have all their results."""
        spent_s = self.noted(SPENT)
        self._clock = StudyClock(self._measure_sessions() if spent_s is None else spent_s)
        self._left: list[Plan] = []
        with self.step():
            self._note_time()
            if self.noted(COPY) is None and self._is_copy():
                self.note(COPY, uuid.uuid4().hex)
            for trial in self.all_trials():
                if trial.state != "running":
                    continue
                if trial.has_all_results:
                    self.complete(trial.plan)
                else:
                    self._left.append(trial.plan)

    def _is_copy(self) -> bool:
        """Return whether this directory is a copy of one that still has its name."""
        original = self.directory.parent / self._begun_as
        try:
            return original != self.directory and type(self).read(original).manifest.uid == self.manifest.uid
        except RecordError:  # renamed: the name is free, or holds something else
            return False

    @property
    def uid(self) -> str:
        """Id of the study in MLflow: that of its manifest, unless the study is a copy."""
        return self.noted(COPY) or self.manifest.uid

    @property
    def space(self) -> SearchSpace | None:
        """The search space, with the budget that applies now; None if all trials are fixed."""
        return self._space

    @property
    def optuna_study(self) -> optuna.Study:
        """The trials for Optuna's plots and importances; callers must not write to it."""
        return self._trials

    def note(self, key: str, value: object) -> None:
        """Store a JSON value about the whole study under a key."""
        self._trials.set_user_attr(key, store_arrays(value, self.directory, f"study-{key}"))

    def noted(self, key: str) -> Any:
        """Return the value that `note` stored under a key; None if there is none."""
        return find_arrays(self._trials.user_attrs.get(key), self.directory)

    def keep_audit(self, audit: Mapping[str, Any], copies: bytes | None) -> None:
        """Store what the audit of the images found, and a picture of copies beside the journal.

        Raises:
            RecordError: the picture cannot be written.
        """
        self.note("audit", audit)
        if copies:
            try:
                with replace_file(self.copies) as draft:
                    draft.write_bytes(copies)
            except OSError as error:
                raise RecordError(f"{self.copies}: must be writable, but got: {error.strerror}.") from None

    @property
    def copies(self) -> Path:
        """PNG file that shows images beside their copies; it exists only if there are copies."""
        return self.directory / "copies.png"

    def set_budget(self, budget: Budget) -> None:
        """Replace the budget of a search from now on."""
        assert self._space
        if budget != self._space.budget:
            self.note("budget", asdict(budget))
            self._space = replace(self._space, budget=budget)

    def set_places(self, **places: str) -> None:
        """Note where the manifest's `source`, `data_dir` and `weights` lie from now on."""
        moved: dict[str, Any] = {
            field: place for field, place in places.items() if place != getattr(self.manifest, field)
        }
        if moved:
            self.note(PLACES, {**(self.noted(PLACES) or {}), **moved})
            self.manifest = replace(self.manifest, **moved)

    def keep_models(self, models: Sequence[str]) -> None:
        """Search only these models from now on: those that their probes did not show to be hopeless."""
        assert self._space
        self.note(MODELS, [*models])
        self._space = self._space.with_models(models)

    def add(self, plans: Iterable[Plan]) -> None:
        """Add planned trials and number them; the sampler also learns from those inside the search space.

        Trials that were added before are skipped, so that a resumed study may plan again.

        Args:
            plans: planned trials, which have no number yet.
        """
        known = [replace(trial.plan, number=None) for trial in self.all_trials()]
        with self.step():
            for plan in plans:
                assert plan.number is None
                if plan in known:
                    continue
                proposal = {}
                if plan.stage == "search" and self._space and self._space.contains(plan.recipe):
                    proposal = {field: getattr(plan.recipe, field) for field in self._space.domains}
                attributes = {"stage": plan.stage, "recipe": plan.recipe.to_dict(), "seed": plan.seed}
                study = self._study_of(plan.stage)
                study.enqueue_trial(proposal, user_attrs=attributes)
                self._remember(study.get_trials(deepcopy=False)[-1])

    def next_trial(self) -> Plan | None:
        """Return a trial that the last session left running, the next planned trial, or the sampler's next proposal.

        Return None if all trials are done or the time budget is spent.
        """
        if self._left:
            return self._left.pop(0)
        for study in self._in_order():
            waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if waiting:
                inside = bool(waiting[0].system_attrs["fixed_params"])
                with self.step():
                    trial = study.ask(build_distributions(self._space) if inside and self._space else None)
                return self._read(self._storage.get_trial(trial._trial_id)).plan
        if self._space is None or self.judging or self.time_is_up():
            return None
        if self.manifest.design.screened and self.noted(MODELS) is None:
            return None  # the probes decide first which models are searched
        number = len(self._trials.get_trials(deepcopy=False))
        if number >= self._space.budget.trials:
            return None
        with self.step():
            # After earlier studies of the same seed, other recipes than theirs are drawn.
            purpose = " ".join(["sampler", *dict.fromkeys(earlier.study for earlier in self.manifest.design.proposals)])
            trial = propose(self._trials, self._space, derive_seed(self.manifest.seed, purpose, number))
            recipe = self._space.recipe(trial.params)
            for key, value in (("stage", "search"), ("recipe", recipe.to_dict()), ("seed", self.manifest.seed)):
                trial.set_user_attr(key, value)
        return self._remember(self._storage.get_trial(trial._trial_id))

    @property
    def judging(self) -> bool:
        """Whether refits are planned, for a re-ranking or the verdict; then the search proposes no more trials."""
        refits = (self._stages[stage] for stage in ("rerank", "final") if stage in self._stages)
        return any(study.get_trials(deepcopy=False) for study in refits)

    def _in_order(self) -> list[optuna.Study]:
        """Return the Optuna studies of all stages in the order in which they run."""
        before = [self._stages["screen"]] if "screen" in self._stages else []
        after = [study for stage, study in self._stages.items() if stage != "screen"]
        return [*before, self._trials, *after]

    def _reason_to_stop(self, plan: Plan, result: EpochResult) -> str | None:
        """Return why a search trial must stop after the given epoch; None if it must not."""
        if self._space is None or plan.stage != "search" or result.epoch >= plan.recipe.epochs:
            return None
        if self.time_is_up():
            return TIME_IS_UP
        if result.val_confusion is None:
            return None
        if self._guess is None:
            metric = self.manifest.design.metric
            self._guess = score(metric, guess(metric, result.val_confusion))
        self._trials.pruner = build_pruner(self._space, self._guess)
        behind = self._running(plan).should_prune()  # also for trial 0: each call enters the trial into the ranking
        # Trial 0 is the baseline, against which all others are compared, so it runs all its epochs.
        return PRUNED if behind and plan.number else None

    def time_is_up(self) -> bool:
        """Return whether a search's time budget is spent."""
        limit = self._space.budget.time_s if self._space else None
        return limit is not None and self.spent_s >= limit

    @property
    def spent_s(self) -> float:
        """Seconds that the study has run, summed over all sessions; each notes the sum, where the next one goes on."""
        return self._clock.spent_s

    def _note_time(self) -> None:
        self.note(SPENT, round(self.spent_s, 3))

    def epoch(self, plan: Plan, result: EpochResult) -> str | None:
        """Record an epoch of a running trial; if the trial must stop now, end it and return the reason.

        An epoch that is recorded already is ignored: a trial that starts anew reports its epochs again.
        """
        if any(known.epoch == result.epoch for known in self.trial(plan).epochs):
            return None
        with self.step():
            self._note_time()
            trial = self._running(plan)
            values = store_arrays(plain(result), self.directory, f"{plan.key}-epoch-{result.epoch}")
            trial.set_user_attr(f"epoch/{result.epoch}", {**values, "ended_ms": round(time.time() * 1000)})
            if result.val_confusion is not None:
                trial.report(self._score(result.val_metrics), result.epoch)
            reason = self._reason_to_stop(plan, result)
            if reason:
                self.prune(plan, reason)
        return reason

    def beat(self) -> None:
        """Record a heartbeat, at most once a minute; the time of a killed session counts until its last heartbeat."""
        if self._clock.beat():
            self._note_time()

    def open_test(self, plan: Plan) -> None:
        """Record that a trial is about to see the test images; a trial that starts anew may see them twice."""
        opened = self.trial(plan).tests_opened
        self._running(plan).set_user_attr(f"test_opened/{opened}", round(time.time() * 1000))

    def tested(self, plan: Plan, test: Evaluation) -> None:
        """Record a trial's result on the test images."""
        self._running(plan).set_user_attr("test", store_arrays(plain(test), self.directory, f"{plan.key}-test"))

    def facts(self, plan: Plan, facts: Mapping[str, Any]) -> None:
        """Record the facts that a trial's process reported about itself."""
        self._running(plan).set_user_attr("facts", dict(facts))

    def complete(self, plan: Plan) -> None:
        """End a trial with its score on the test images as value, or on the validation images if it was not tested."""
        trial = self.trial(plan)
        if not trial.metrics or (plan.stage == "final" and not trial.test):
            self.fail(plan, "it ended without a result.")
        else:
            self._study_of(plan.stage).tell(self._running(plan), self._score(trial.metrics))
            self._drop_checkpoint(plan)

    def adopt(self, plan: Plan, donor: TrialRecord, study: str) -> None:
        """Complete a waiting trial with the results that another study has of the same recipe and seed.

        Args:
            plan: waiting trial.
            donor: complete and tested trial of the other study.
            study: name of the study that ran it.
        """
        assert donor.test and donor.plan.recipe == plan.recipe and donor.plan.seed == plan.seed
        with self.step():
            self._storage.set_trial_state_values(self._ids[plan.key], TrialState.RUNNING)
            self.facts(plan, {**donor.facts, "reused_from": study})
            for result in donor.epochs:
                self.epoch(plan, replace(result, features=None, store_failure=None))
            self.tested(plan, donor.test)
            self.complete(plan)

    def prune(self, plan: Plan, reason: str) -> None:
        """End a trial that was stopped early: its last score is not final."""
        self._end(plan, TrialState.PRUNED, reason)

    def fail(self, plan: Plan, reason: str) -> None:
        """End a trial that could not be finished."""
        self._end(plan, TrialState.FAIL, reason)

    def trial(self, plan: Plan) -> TrialRecord:
        """Return the current state of one trial."""
        with self._whole:
            return self._read(self._storage.get_trial(self._ids[plan.key]))

    def has_ended(self, plan: Plan) -> bool:
        """Return whether a trial is complete, pruned or failed, without reading its results."""
        with self._whole:
            return self._storage.get_trial(self._ids[plan.key]).state.is_finished()

    def trials(self) -> list[TrialRecord]:
        """Return the current state of all trials except refits, by number."""
        with self._whole:
            return [self._read(trial) for trial in self._trials.get_trials(deepcopy=False)]

    def screens(self) -> list[TrialRecord]:
        """Return the current state of the probes before a search, by number; none if no models are compared."""
        return self._trials_of("screen")

    def reranks(self) -> list[TrialRecord]:
        """Return the current state of the re-ranking's trials, by number; none without a re-ranking."""
        return self._trials_of("rerank")

    def finals(self) -> list[TrialRecord]:
        """Return the current state of the verdict's trials, by number."""
        return self._trials_of("final")

    def all_trials(self) -> list[TrialRecord]:
        """Return the current state of all trials, the probes before a search first and the verdict's last."""
        with self._whole:
            return [self._read(trial) for study in self._in_order() for trial in study.get_trials(deepcopy=False)]

    def _trials_of(self, stage: str) -> list[TrialRecord]:
        with self._whole:
            trials = self._stages[stage].get_trials(deepcopy=False) if stage in self._stages else []
            return [self._read(trial) for trial in trials]

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints: those of plans that keep weights stay until the study ends."""
        return self.directory / "checkpoints"

    def close(self) -> None:
        """Wait until the record is on the disk, and release its lock, so that another process may run the study.

        Raises:
            RecordError: a recorded step has not reached the disk.
        """
        try:
            self._journal.settle()
        finally:
            self._lock.release()

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Return the metric that decides the study, with the sign by which more is better."""
        metric = self.manifest.design.metric
        return score(metric, metrics[metric])

    def _study_of(self, stage: str) -> optuna.Study:
        return self._stages.get(stage, self._trials)

    def _end(self, plan: Plan, state: TrialState, reason: str) -> None:
        with self.step():
            self._running(plan).set_user_attr("reason", reason)
            self._study_of(plan.stage).tell(self._running(plan), state=state)
        self._drop_checkpoint(plan)

    def _drop_checkpoint(self, plan: Plan) -> None:
        if not plan.keeps_weights:
            (self.checkpoints / plan.checkpoint).unlink(missing_ok=True)

    def _running(self, plan: Plan) -> optuna.Trial:
        return optuna.Trial(self._study_of(plan.stage), self._ids[plan.key])

    def _read(self, trial: FrozenTrial) -> TrialRecord:
        return read_trial(trial, self.directory)

    def _remember(self, trial: FrozenTrial) -> Plan:
        plan = self._read(trial).plan
        self._ids[plan.key] = trial._trial_id
        return plan

    def _measure_sessions(self) -> float:
        """Return the seconds of all sessions in a journal of version 0.1.0, which noted no sum."""
        trials = self.all_trials()
        moments = (moment for trial in trials for moment in (trial.started_ms, trial.ended_ms, *trial.epoch_ends_ms))
        return measure_sessions(self._trials.user_attrs, [moment for moment in moments if moment is not None])


def _stages(manifest: Manifest) -> list[str]:
    """Return the stages of a study that have trials of their own, in the order in which they run."""
    design = manifest.design
    return [*(["screen"] if design.screened else []), *(["rerank"] if design.rerank else []), "final"]


def _foreign_version(path: Path) -> str:
    """Say with which other version of Optuna a journal was written, if with another; a newer one may have new lines."""
    written = re.search(rb'"optuna":"([\w.]+)"', path.read_bytes())
    if written is None or written[1].decode() == optuna.__version__:
        return ""
    return (
        f" It was begun with Optuna {written[1].decode()}, and Optuna {optuna.__version__} is installed: install that."
    )
