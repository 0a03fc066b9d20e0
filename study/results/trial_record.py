"""A trial as a study's journal has it: what it is, and what came of it, read from Optuna's own trials.

Writes nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from study.config.plan import Plan
from study.config.recipe import Recipe
from study.results.metrics import EpochResult, Evaluation

STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

PRUNED = "pruned"
"""The reason of a trial that the pruner stopped; others were stopped when time was up."""


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the journal has it."""

    plan: Plan
    state: str
    """waiting, running, complete, pruned or failed."""
    value: float | None
    """The objective, once complete."""
    epochs: tuple[EpochResult, ...]
    epoch_ends_ms: tuple[int, ...]
    """When the driver heard of each, since 1970."""
    test: Evaluation | None
    tests_opened: int
    """How often it was about to see the test images: once, unless its process died of it."""
    reason: str | None
    """Why it failed, or was stopped."""
    facts: Mapping[str, Any]
    """What the trial's process said of itself: device, precision and counts of parameters."""
    started_ms: int | None
    """Since 1970, as MLflow wants it."""
    ended_ms: int | None

    @property
    def training_s(self) -> float:
        """Seconds that its epochs took, validation not included."""
        return sum(result.epoch_s for result in self.epochs)

    @property
    def seconds(self) -> float:
        """Device time that was spent on it: training, validation and test."""
        return self.training_s + sum(result.val_s for result in self.epochs) + (self.test.seconds if self.test else 0.0)

    @property
    def features(self) -> Counter[str]:
        """Images by where the prefix's outputs came from, all epochs together; empty where nothing was shared."""
        return sum((Counter(result.features) for result in self.epochs), Counter())

    @property
    def saved_s(self) -> float:
        """Device time that the pruner saved, its further epochs taken to be as long as its own."""
        if self.reason != PRUNED or not self.epochs:
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


def read_trial(trial: FrozenTrial) -> TrialRecord:
    """Read a trial, whatever has come of it so far."""
    told = trial.user_attrs
    kept = sorted((dict(values) for key, values in told.items() if key.startswith("epoch/")), key=itemgetter("epoch"))
    epoch_ends_ms = tuple(values.pop("ended_ms") for values in kept)
    return TrialRecord(
        plan=Plan(trial.number, told["stage"], Recipe.from_dict(told["recipe"]), told["seed"]),
        state=STATES[trial.state],
        # Optuna takes a pruned trial's last score for its value.
        value=trial.value if trial.state is TrialState.COMPLETE else None,
        epochs=tuple(EpochResult(**values) for values in kept),
        epoch_ends_ms=epoch_ends_ms,
        test=Evaluation(**told["test"]) if "test" in told else None,
        tests_opened=sum(key.startswith("test_opened/") for key in told),
        reason=told.get("reason"),
        facts=told.get("facts", {}),
        started_ms=_milliseconds(trial.datetime_start),
        ended_ms=_milliseconds(trial.datetime_complete),
    )


def _milliseconds(moment: Any) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)
