"""A study's one record: an Optuna journal, written by the driver alone; everything else is derived from it.

What a trial is (recipe, seed, stage) and what came of it (epochs, test, reason, seconds) are user attributes of its
Optuna trial. Knows neither Ray nor MLflow.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from study.config import Plan, Recipe
from study.errors import RecordError
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
    """Why it failed."""
    facts: Mapping[str, Any]
    """What the trial's process said of itself: device, precision, trainable_parameters, first_batch_s …"""
    started_ms: int | None
    """Since 1970, as MLflow wants it."""
    ended_ms: int | None

    @property
    def finished(self) -> bool:
        """Whether it is complete, pruned or failed."""
        return self.state in {"complete", "pruned", "failed"}


class Record:
    """The journal of one study, opened by the one process that may write it."""

    def __init__(self, directory: Path, name: str, manifest: Mapping[str, Any]) -> None:
        """Make a new study's directory and journal.

        Args:
            directory: of this study; made here.
            name: of the study.
            manifest: what the study is (data, split, seed, weights, …), as JSON values.

        Raises:
            RecordError: the study exists already, or its directory cannot be written.
        """
        self.directory = directory
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
        self._study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        self._study.set_user_attr("manifest", {"uid": uuid.uuid4().hex, **manifest})

    @property
    def name(self) -> str:
        """The study's name."""
        return self._study.study_name

    @property
    def manifest(self) -> dict[str, Any]:
        """What the study is, as told when it was made."""
        manifest: dict[str, Any] = self._study.user_attrs["manifest"]
        return manifest

    def note(self, key: str, value: object) -> None:
        """Keep a fact about the study as a whole, as a JSON value."""
        self._study.set_user_attr(key, value)

    def add(self, trials: Iterable[tuple[str, Recipe, int]]) -> None:
        """Plan fixed trials: (stage, recipe, seed) each."""
        for stage, recipe, seed in trials:
            attributes = {"stage": stage, "recipe": recipe.to_dict(), "seed": seed}
            self._study.enqueue_trial({}, user_attrs=attributes)

    def next_trial(self) -> Plan | None:
        """Start the next planned trial; None when there is none."""
        if not any(trial.state == TrialState.WAITING for trial in self._frozen_trials()):
            return None
        return self.trial(self._study.ask().number).plan

    def epoch(self, number: int, result: EpochResult) -> None:
        """Keep an epoch of a running trial."""
        trial = self._running(number)
        trial.set_user_attr(f"epoch/{result.epoch}", asdict(result))
        if result.val_accuracy is not None:
            trial.report(result.val_accuracy, result.epoch)

    def tested(self, number: int, test: Evaluation) -> None:
        """Keep what a trial made of the test set; that it was opened is thereby recorded."""
        self._running(number).set_user_attr("test", asdict(test))

    def facts(self, number: int, facts: Mapping[str, Any]) -> None:
        """Keep what a trial's process said of itself."""
        self._running(number).set_user_attr("facts", dict(facts))

    def complete(self, number: int) -> None:
        """End a trial with its objective: its test accuracy, or where it was not tested the last on validation."""
        trial = self.trial(number)
        if trial.test:
            self._study.tell(number, trial.test.accuracy)
        elif trial.epochs and trial.epochs[-1].val_accuracy is not None:
            self._study.tell(number, trial.epochs[-1].val_accuracy)
        else:
            self.fail(number, "it ended without a result.")

    def fail(self, number: int, reason: str) -> None:
        """End a trial that could not be finished."""
        self._running(number).set_user_attr("reason", reason)
        self._study.tell(number, state=TrialState.FAIL)

    def trial(self, number: int) -> TrialRecord:
        """Return one trial as it stands."""
        return _read_trial(self._frozen_trials()[number])

    def trials(self) -> list[TrialRecord]:
        """Return all trials as they stand, by number."""
        return [_read_trial(trial) for trial in self._frozen_trials()]

    def close(self) -> None:
        """Let another process have the study."""
        self._lock.release()

    def _frozen_trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _running(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._study, self._frozen_trials()[number]._trial_id)


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
