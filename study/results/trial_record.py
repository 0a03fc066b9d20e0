"""Read a trial's plan and results from the Optuna trial in a study's journal.

This module writes nothing.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from study.config.manifest import Manifest
from study.config.plan import Plan
from study.config.recipe import Recipe
from study.results.arrays import Counts, find_arrays
from study.results.metrics import EpochResult, Evaluation, nothing_learnt

STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}

PRUNED = "pruned"
"""The reason recorded for a trial that the pruner stopped; the time budget stops trials too, with another reason."""


@dataclass(frozen=True)
class TrialRecord:
    """The state of a trial in the journal."""

    plan: Plan
    state: str
    """waiting, running, complete, pruned or failed."""
    value: float | None
    """The study's metric on the test images, or on the validation images if the trial was not tested, with the sign by
    which more is better; None unless complete."""
    epochs: tuple[EpochResult, ...]
    epoch_ends_ms: tuple[int, ...]
    """When the driver received each epoch, in milliseconds since 1970."""
    test: Evaluation | None
    tests_opened: int
    """How often the trial was about to see the test images: more than once only if it had to start anew."""
    reason: str | None
    """Why the trial failed or was stopped; None otherwise."""
    facts: Mapping[str, Any]
    """Facts that the trial's process reported about itself: device, precision, parameter counts and others."""
    started_ms: int | None
    """Start time in milliseconds since 1970, the unit of MLflow."""
    ended_ms: int | None
    """End time in milliseconds since 1970."""
    last_score: float | None = None
    """The study's metric on the validation images after the last epoch, with the sign by which more is better."""

    @property
    def number(self) -> int:
        """Optuna's trial number, from 0; the verdict's trials are counted separately."""
        assert self.plan.number is not None
        return self.plan.number

    @property
    def training_s(self) -> float:
        """Training time of all epochs in seconds, without validation."""
        return sum(result.epoch_s for result in self.epochs)

    @property
    def seconds(self) -> float:
        """Device time in seconds that the study spent: training, validation and test; 0 for a reused result."""
        if self.reused_from:
            return 0.0
        return self.training_s + sum(result.val_s for result in self.epochs) + (self.test.seconds if self.test else 0.0)

    @property
    def reused_from(self) -> str | None:
        """Name of the study whose trial this result was copied from; None if the trial ran in its own study."""
        study: str | None = self.facts.get("reused_from")
        return study

    @property
    def features(self) -> Counter[str]:
        """Number of images by source of the prefix's outputs, over all epochs; empty if no work was shared."""
        return sum((Counter(result.features) for result in self.epochs), Counter())

    @property
    def saved_s(self) -> float:
        """Estimated device time in seconds that the pruner saved: skipped epochs times the mean time of an epoch."""
        if self.reason != PRUNED or not self.epochs:
            return 0.0
        return self.seconds / len(self.epochs) * (self.plan.recipe.epochs - len(self.epochs))

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy of the last epoch, in [0, 1]; None before the first or without validation images."""
        return self.epochs[-1].val_accuracy if self.epochs else None

    @property
    def score(self) -> float | None:
        """The final value, or the score of the last epoch if the trial is not complete: more is better."""
        return self.last_score if self.value is None else self.value

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics on the test images, or after the last epoch on the validation images; empty without either."""
        return self.test.metrics if self.test else self.epochs[-1].val_metrics if self.epochs else {}

    @property
    def confusion(self) -> Counts | None:
        """Confusion of the test images, or after the last epoch of the validation images; None without either."""
        return self.test.confusion if self.test else self.epochs[-1].val_confusion if self.epochs else None

    def nothing_learnt(self, manifest: Manifest) -> str | None:
        """Return why the trial has learnt nothing, by its test or last validation; None if it has, or has neither."""
        confusion = self.confusion
        return nothing_learnt(confusion, manifest.classes, manifest.design.metric) if confusion else None

    @property
    def has_all_results(self) -> bool:
        """Whether nothing is missing: the trial is tested, or sees no test images and has all its epochs."""
        return bool(self.test) or (self.plan.validates and len(self.epochs) == self.plan.recipe.epochs)

    @property
    def finished(self) -> bool:
        """Whether the trial is complete, pruned or failed."""
        return self.state in {"complete", "pruned", "failed"}


def read_trial(trial: FrozenTrial, directory: Path) -> TrialRecord:
    """Read a trial in any state; large arrays are read from the study's directory when they are used."""
    attributes = trial.user_attrs
    epochs = sorted(
        (find_arrays(values, directory) for key, values in attributes.items() if key.startswith("epoch/")),
        key=itemgetter("epoch"),
    )
    epoch_ends_ms = tuple(values.pop("ended_ms") for values in epochs)
    return TrialRecord(
        plan=Plan(trial.number, attributes["stage"], _recipe(tuple(attributes["recipe"].items())), attributes["seed"]),
        state=STATES[trial.state],
        # For a pruned trial, Optuna returns the last score as value.
        value=trial.value if trial.state is TrialState.COMPLETE else None,
        epochs=tuple(EpochResult(**values) for values in epochs),
        epoch_ends_ms=epoch_ends_ms,
        test=Evaluation(**find_arrays(attributes["test"], directory)) if "test" in attributes else None,
        tests_opened=sum(key.startswith("test_opened/") for key in attributes),
        reason=attributes.get("reason"),
        facts=attributes.get("facts", {}),
        started_ms=_milliseconds(trial.datetime_start),
        ended_ms=_milliseconds(trial.datetime_complete),
        last_score=trial.intermediate_values.get(max(trial.intermediate_values, default=0)),
    )


@lru_cache(maxsize=4096)
def _recipe(values: tuple[tuple[str, Any], ...]) -> Recipe:
    """Return the recipe of these fields; a trial is read at each of its reports, its recipe is checked only once."""
    return Recipe(**dict(values))


def _milliseconds(moment: Any) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)
