"""Estimate how long a study still takes, from the times of its trials so far.

A pure function of trials and design. It knows neither the machine nor Ray: its caller says how many trials run at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from study.config.plan import Design
from study.config.recipe import Recipe
from study.formatting import format_duration
from study.results.trial_record import TrialRecord
from study.verdict.rerank import REFITS
from study.verdict.statistics import FIRST_SEEDS, LOOKS

CLOSE = 1.25
"""Bounds whose ratio is smaller are shown as one number."""


@dataclass(frozen=True)
class Estimate:
    """Bounds of the time in seconds that a study still takes, if its next trials take what its trials took."""

    low_s: float
    high_s: float

    def __str__(self) -> str:
        """Return 'about 5m00s left', 'about 5m00s to 9m00s left', or 'at most 9m00s left' if it may end at any time."""
        if self.high_s <= CLOSE * self.low_s or self.high_s < 1:
            return f"about {format_duration(self.high_s)} left"
        if self.low_s < 1:
            return f"at most {format_duration(self.high_s)} left"
        return f"about {format_duration(self.low_s)} to {format_duration(self.high_s)} left"


def estimate(
    design: Design, trials: Sequence[TrialRecord], *, spent_s: float, at_once: int, search_ended: bool
) -> Estimate | None:
    """Return the time that a search still takes; None before the first epoch, or for fixed trials.

    Trials of the search that have not begun take what the others took on average, pruned ones included, so what the
    pruner saves counts. Before a trial has ended, they take the time of a whole one. Refits take what a whole trial
    takes. Probes before the search are not counted. The lower bound has the fewest refits that the verdict may need,
    the upper bound the most; where the baseline has won the search, both have those that are planned. What an earlier
    study ran, and may be reused, is not foreseen, nor is the time for report and registry.

    Args:
        design: design of the study, with the budget that applies now.
        trials: all trials of the study, with all refits that are planned for the verdict.
        spent_s: seconds that the study has run.
        at_once: number of trials that run at the same time, at least 1.
        search_ended: whether the search proposes no more trials.
    """
    trials = [trial for trial in trials if not trial.plan.probes]  # a probe takes as long as no other trial
    if design.space is None or (whole_s := _whole_s(trials)) is None:
        return None
    search = [trial for trial in trials if trial.plan.stage == "search"]
    ended = [trial.seconds for trial in search if trial.finished]
    usual_s = fmean(ended) if ended else whole_s
    running_s = sum(max(0.0, usual_s - trial.seconds) for trial in search if not trial.finished)
    begun = len(search)
    left_s = running_s + (0 if search_ended else max(0, design.space.budget.trials - begun)) * usual_s
    left_s /= at_once
    if design.space.budget.time_s is not None:
        left_s = min(left_s, max(0.0, design.space.budget.time_s - spent_s))
    few, many = _refits(design, [trial.plan.recipe for trial in trials if trial.plan.stage == "final"])
    refits = [trial for trial in trials if trial.plan.stage != "search"]
    begun_s = sum(max(0.0, whole_s - trial.seconds) for trial in refits if not trial.finished)
    low, high = (left_s + (begun_s + max(0, number - len(refits)) * whole_s) / at_once for number in (few, many))
    return Estimate(low, high)


def _whole_s(trials: Sequence[TrialRecord]) -> float | None:
    """Return the mean device time of a trial that runs all its epochs; None before the first epoch."""
    measured = [
        trial.seconds / len(trial.epochs) * trial.plan.recipe.epochs
        for trial in trials
        if trial.epochs and not trial.reused_from
    ]
    return fmean(measured) if measured else None


def _refits(design: Design, planned: Sequence[Recipe]) -> tuple[int, int]:
    """Return the smallest and the largest number of refits of the re-ranking and the verdict.

    `planned` has the recipe of each refit that is planned for the verdict: one recipe alone if the baseline won.
    """
    reranks = REFITS * design.rerank
    if len(set(planned)) == 1:
        return reranks + len(planned), reranks + len(planned)
    few, many = (FIRST_SEEDS, max(LOOKS)) if design.repeats == "auto" else (design.repeats, design.repeats)
    return reranks + max(2 * few, len(planned)), reranks + 2 * many
