"""Define the verdict of a search as plain values that a study's record keeps, and read them back."""

from dataclasses import asdict, dataclass, field

import numpy as np
from pydantic import TypeAdapter

from study.results.arrays import Counts
from study.results.ledger import Looks
from study.results.record import Record
from study.verdict.statistics import Decision, Difference

Value = str | int | float


@dataclass(frozen=True)
class Side:
    """One recipe, refitted with each seed that counts and tested once per seed."""

    accuracies: list[float]
    """Test accuracies, in [0, 1], in the order of the verdict's seeds."""
    mean: float
    """Mean of the accuracies."""
    std: float | None
    """Standard deviation of the accuracies over seeds (n - 1 in the denominator); None for one seed."""
    confusion: Counts
    """Counts summed over the seeds, (classes, classes): row = true class, column = predicted class."""
    values: list[float] = field(default_factory=list)
    """The study's metric, in the order of the verdict's seeds; empty if it is the accuracy."""


@dataclass(frozen=True)
class HardPair:
    """Two classes, and how often an image of one was predicted as the other, summed over the seeds."""

    classes: list[str]
    baseline: int
    """Number of confusions by the baseline."""
    winner: int
    """Number of confusions by the search's best recipe."""


@dataclass(frozen=True)
class Comparison:
    """The refits of both recipes, compared seed by seed."""

    winner: Side
    difference: Difference
    """Gain of the winner over the baseline in the study's mean metric on the test images, with its 95 % interval: more
    is better, so for a log loss it is the baseline's minus the winner's."""
    mcnemar_p: list[float]
    """Exact p-value of each seed, in the order of the verdict's seeds."""
    confusion_difference: Counts
    """The winner's confusion counts minus the baseline's, (classes, classes)."""
    hardest_before: HardPair | None
    """The pair of classes that the baseline confuses most; None if it confuses none or has learnt nothing."""
    hardest_after: HardPair | None
    """The pair of classes that the winner confuses most; None if it confuses none or has learnt nothing."""
    corrected_p: float | None = None
    """p-value of the difference, corrected for the earlier verdicts (Holm); None in records of version 0.1.0."""
    earlier_verdicts: int = 0
    """Number of verdicts that earlier studies reached on the same test images."""


@dataclass(frozen=True)
class Candidate:
    """A trial of the search that was refitted on more seeds and splits before the test images were opened."""

    trial: int
    """Number of the trial in the search."""
    accuracies: list[float]
    """Scores on validation images, more is better: that of the search, then those of the refits."""
    mean: float


@dataclass(frozen=True)
class Verdict:
    """The comparison of the search's best recipe with the baseline, as values that JSON can hold."""

    decision: Decision | None
    """None if no seed counts, unless the baseline won the search."""
    reason: str | None
    """Why there is no comparison: no seed counts, or the baseline won the search; None if there is a comparison."""
    winner_trial: int
    """Number of the winning trial in the search."""
    changes: dict[str, Value]
    """Fields of the winning recipe that differ from the baseline, with their values; empty if the baseline won."""
    val_accuracy: float
    """Validation accuracy of the winning trial in the search, in [0, 1]."""
    optimism: float | None
    """Validation score minus the winner's mean test score, the bias of choosing the best of many trials; or None."""
    seeds: list[int]
    """Seeds that count, in the planned order: those with complete refits of both recipes."""
    seeds_planned: int
    """Number of seeds that were planned."""
    missing: list[str]
    """Incomplete refits for seeds that do not count, each with its reason."""
    baseline: Side | None
    """None if no seed counts."""
    comparison: Comparison | None
    stops_early: bool = False
    """Whether the number of seeds depended on the results; the interval and the p-value allow for it."""
    reused: list[str] = field(default_factory=list)
    """Refits that an earlier study ran, each with the study's name."""
    reranked: list[Candidate] = field(default_factory=list)
    """Candidates of the re-ranking, the best mean first; empty without one."""
    looks: Looks | None = None
    """Openings of the test images when the verdict was reached; None in records of version 0.1.0."""
    metric: str = "accuracy"
    """Metric that decides the study."""
    val_value: float | None = None
    """The metric of the winning trial on the validation images; None in older records, where it is the accuracy."""
    nothing_learnt: dict[str, str] = field(default_factory=dict)
    """Why the baseline or the winner has learnt nothing on the test images, by 'baseline' and 'winner'."""


def stored_verdict(record: Record) -> Verdict | None:
    """Return the verdict of a search from its record; None if the search has none yet, or nothing to judge."""
    values = record.noted("verdict")
    return None if values is None else TypeAdapter(Verdict).validate_python(values)


def verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """Return the available figures of a verdict by their MLflow name: fractions, but for a log loss."""
    comparison = verdict.comparison
    metrics: dict[str, float | None] = {"optimism": verdict.optimism}
    if verdict.baseline:
        metrics |= {"baseline_test_accuracy": verdict.baseline.mean, "baseline_test_accuracy_std": verdict.baseline.std}
    if comparison:
        metrics |= {"test_accuracy": comparison.winner.mean, "test_accuracy_std": comparison.winner.std}
    for name, side in {"baseline_": verdict.baseline, "": comparison and comparison.winner}.items():
        if side and side.values:
            metrics[f"{name}test_{verdict.metric}"] = float(np.mean(side.values))
    if comparison:
        metrics |= {f"difference_{name}": value for name, value in asdict(comparison.difference).items()}
    return {name: value for name, value in metrics.items() if value is not None}


def count_seeds(number: int, of: int | None = None) -> str:
    """Return '1 seed', '3 seeds' or '2 of 3 seeds'."""
    total = number if of is None else of
    return f"{number if number == total else f'{number} of {total}'} seed{'' if total == 1 else 's'}"
