"""A study's one record: an Optuna journal, written by the driver alone; everything else is derived from it.

What a trial is (recipe, seed, stage) and what came of it (epochs, test, reason, seconds) are user attributes of its
Optuna trial. Knows neither Ray nor MLflow.
"""

import time
import uuid
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from study.config import Plan, Recipe
from study.errors import RecordError
from study.search_space import Categorical, Domain, Float, Int, SearchSpace
from study.seeding import derive_seed
from study.training import EpochResult, Evaluation

STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the journal has it."""

    plan: Plan
    state: str
    """waiting, running, complete, pruned or failed."""
    value: float | None
    """The objective, once complete."""
    epochs: tuple[EpochResult, ...]
    test: Evaluation | None
    reason: str | None
    """Why it failed, or was stopped."""
    facts: Mapping[str, Any]
    """What the trial's process said of itself: device, precision and counts of parameters."""
    started_ms: int | None
    """Since 1970, as MLflow wants it."""
    ended_ms: int | None

    @property
    def seconds(self) -> float:
        """Device time that its epochs took."""
        return sum(result.epoch_s for result in self.epochs)

    @property
    def saved_s(self) -> float:
        """Device time that stopping it early saved, its further epochs taken to be as long as its own."""
        if self.state != "pruned" or not self.epochs:
            return 0.0
        return self.seconds / len(self.epochs) * (self.plan.recipe.epochs - len(self.epochs))

    @property
    def val_accuracy(self) -> float | None:
        """Of its last epoch, in [0, 1]; None before the first, or where nothing is held out."""
        return self.epochs[-1].val_accuracy if self.epochs else None

    @property
    def finished(self) -> bool:
        """Whether it is complete, pruned or failed."""
        return self.state in {"complete", "pruned", "failed"}


class Record:
    """The journal of one study, opened by the one process that may write it.

    It holds two Optuna studies: the trials under the study's name, and the verdict's under `<name> final`, so that
    values of validation and of test never stand in one ranking.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        manifest: Mapping[str, Any],
        *,
        space: SearchSpace | None = None,
        seed: int = 0,
    ) -> None:
        """Make a new study's directory and journal.

        Args:
            directory: of this study; made here.
            name: of the study.
            manifest: what the study is (data, split, seed, weights, …), as JSON values.
            space: what a search proposes from, with its budget and pruner; None for fixed trials alone.
            seed: of the proposals.

        Raises:
            RecordError: the study exists already, or its directory cannot be written.
        """
        self.directory = directory
        self.name = name
        self._space = space
        self._seed = seed
        self._opened = time.monotonic()
        if directory.exists():
            raise RecordError(f"{directory}: a study named {name!r} exists. Choose another --name.")
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            raise RecordError(f"{directory}: cannot be written ({error.strerror}). Run where you may write.") from None
        self._lock = FileLock(directory / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RecordError(f"{directory}: study {name!r} is being run by another process.") from None
        storage = JournalStorage(JournalFileBackend(str(directory / "journal.log")))
        self._trials = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", pruner=_build_pruner(space)
        )
        self._finals = optuna.create_study(storage=storage, study_name=f"{name} final", direction="maximize")
        self._trials.set_user_attr("manifest", {"uid": uuid.uuid4().hex, **manifest})

    @property
    def manifest(self) -> dict[str, Any]:
        """What the study is, as told when it was made."""
        manifest: dict[str, Any] = self._trials.user_attrs["manifest"]
        return manifest

    def note(self, key: str, value: object) -> None:
        """Keep a fact about the study as a whole, as a JSON value."""
        self._trials.set_user_attr(key, value)

    def add(self, trials: Iterable[tuple[str, Recipe, int]]) -> None:
        """Plan fixed trials: (stage, recipe, seed) each; a search may propose what its space holds of them."""
        for stage, recipe, seed in trials:
            proposal = {}
            if stage == "search" and self._space and self._space.contains(recipe):
                proposal = {field: getattr(recipe, field) for field in self._space.domains}
            attributes = {"stage": stage, "recipe": recipe.to_dict(), "seed": seed}
            self._study_of(stage).enqueue_trial(proposal, user_attrs=attributes)

    def next_trial(self) -> Plan | None:
        """Start the next planned trial, or the sampler's next proposal; None when all is done or the time is up."""
        for study in (self._trials, self._finals):
            waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if waiting:
                held = bool(waiting[0].system_attrs["fixed_params"])
                trial = study.ask(self._distributions() if held else None)
                return _read_trial(_frozen(study, trial.number)).plan
        if self._space is None or self._finals.get_trials(deepcopy=False) or self.time_is_up():
            return None
        number = len(self._trials.get_trials(deepcopy=False))
        if number >= self._space.budget.trials:
            return None
        self._trials.sampler = _build_sampler(derive_seed(self._seed, "sampler", number))
        trial = self._trials.ask(self._distributions())
        recipe = self._space.recipe(trial.params)
        for key, value in (("stage", "search"), ("recipe", recipe.to_dict()), ("seed", self._seed)):
            trial.set_user_attr(key, value)
        return Plan(trial.number, "search", recipe, self._seed)

    def should_stop(self, plan: Plan) -> str | None:
        """Say why a trial of a search should end after the epoch that it has just reported; None if it should not."""
        if self._space is None or plan.stage != "search" or self.trial(plan).epochs[-1].epoch >= plan.recipe.epochs:
            return None
        if self.time_is_up():
            return "the time budget is spent"
        behind = self._running(plan).should_prune()  # asked of trial 0 too: the pruner ranks only whom it was asked of
        # Trial 0 is the baseline: what all others are measured against runs to its end.
        return "pruned" if behind and plan.number else None

    def time_is_up(self) -> bool:
        """Tell whether a search's time budget is spent."""
        limit = self._space.budget.time_s if self._space else None
        return limit is not None and time.monotonic() - self._opened >= limit

    def importances(self) -> dict[str, float]:
        """Return how much each searched field mattered for validation accuracy, in [0, 1], together 1 (fANOVA)."""
        assert self._space
        fields = list(self._space.domains)
        complete = self._trials.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len({trial.value for trial in complete if set(fields) <= set(trial.params)}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(self._trials, evaluator=evaluator, params=fields))

    def epoch(self, plan: Plan, result: EpochResult) -> None:
        """Keep an epoch of a running trial."""
        trial = self._running(plan)
        trial.set_user_attr(f"epoch/{result.epoch}", asdict(result))
        if result.val_accuracy is not None:
            trial.report(result.val_accuracy, result.epoch)

    def tested(self, plan: Plan, test: Evaluation) -> None:
        """Keep what a trial made of the test set; that it was opened is thereby recorded."""
        self._running(plan).set_user_attr("test", asdict(test))

    def facts(self, plan: Plan, facts: Mapping[str, Any]) -> None:
        """Keep what a trial's process said of itself."""
        self._running(plan).set_user_attr("facts", dict(facts))

    def complete(self, plan: Plan) -> None:
        """End a trial with its objective: its test accuracy, or where it was not tested the last on validation."""
        trial = self.trial(plan)
        value = trial.test.accuracy if trial.test else trial.val_accuracy
        if value is None:
            self.fail(plan, "it ended without a result.")
        else:
            self._study_of(plan.stage).tell(plan.number, value)

    def prune(self, plan: Plan, reason: str) -> None:
        """End a trial that was stopped early: its last score is no final one."""
        self._end(plan, TrialState.PRUNED, reason)

    def fail(self, plan: Plan, reason: str) -> None:
        """End a trial that could not be finished."""
        self._end(plan, TrialState.FAIL, reason)

    def trial(self, plan: Plan) -> TrialRecord:
        """Return one trial as it stands."""
        return _read_trial(_frozen(self._study_of(plan.stage), plan.number))

    def trials(self) -> list[TrialRecord]:
        """Return all trials as they stand, by number; the verdict's are not among them."""
        return [_read_trial(trial) for trial in self._trials.get_trials(deepcopy=False)]

    def finals(self) -> list[TrialRecord]:
        """Return the verdict's trials as they stand, by number."""
        return [_read_trial(trial) for trial in self._finals.get_trials(deepcopy=False)]

    def close(self) -> None:
        """Let another process have the study."""
        self._lock.release()

    def _study_of(self, stage: str) -> optuna.Study:
        return self._finals if stage == "final" else self._trials

    def _end(self, plan: Plan, state: TrialState, reason: str) -> None:
        self._running(plan).set_user_attr("reason", reason)
        self._study_of(plan.stage).tell(plan.number, state=state)

    def _running(self, plan: Plan) -> optuna.Trial:
        study = self._study_of(plan.stage)
        return optuna.Trial(study, _frozen(study, plan.number)._trial_id)

    def _distributions(self) -> dict[str, BaseDistribution]:
        assert self._space
        return {field: _distribution(domain) for field, domain in self._space.domains.items()}


def _frozen(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Int(low, high, log):
            return IntDistribution(low, high, log=log)
        case Float(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Categorical(choices):
            return CategoricalDistribution(choices)


def _build_sampler(seed: int) -> optuna.samplers.TPESampler:
    """Build the sampler of one proposal (TPE: Bergstra et al., NeurIPS 2011).

    Each proposal has its own, so that it depends on the journal and its number alone, and a search that was resumed
    goes on as one that was never stopped. Groups keep a fixed trial outside the space from hiding the others.
    """
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=True, group=True, constant_liar=True)


def _build_pruner(space: SearchSpace | None) -> optuna.pruners.BasePruner:
    if space is None or space.pruner.name == "none":
        return optuna.pruners.NopPruner()
    # Asynchronous successive halving: Li et al., arXiv:1810.05934
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=space.pruner.min_epochs, reduction_factor=space.pruner.reduction_factor
    )


def _read_trial(trial: FrozenTrial) -> TrialRecord:
    told = trial.user_attrs
    epochs = [EpochResult(**values) for key, values in told.items() if key.startswith("epoch/")]
    return TrialRecord(
        plan=Plan(trial.number, told["stage"], Recipe.from_dict(told["recipe"]), told["seed"]),
        state=STATES[trial.state],
        value=trial.value,
        epochs=tuple(sorted(epochs, key=lambda result: result.epoch)),
        test=Evaluation(**told["test"]) if "test" in told else None,
        reason=told.get("reason"),
        facts=told.get("facts", {}),
        started_ms=_milliseconds(trial.datetime_start),
        ended_ms=_milliseconds(trial.datetime_complete),
    )


def _milliseconds(moment: Any) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)
