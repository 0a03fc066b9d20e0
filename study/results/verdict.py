"""Decide whether the best recipe of a search beats the baseline: which refits are needed, and what they show.

Reads records and plans trials. Runs nothing, opens no test set, and leaves the arithmetic to `statistics.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from study.config.recipe import Recipe
from study.results.metrics import Evaluation
from study.results.record import Record
from study.results.statistics import Decision, Difference, Flags, decide, hardest_pair, mcnemar_exact, paired_difference
from study.results.trial_record import TrialRecord
from study.seeding import derive_seed

Value = str | int | float


@dataclass(frozen=True)
class Side:
    """One recipe, refitted with every seed that counts and tested once each."""

    accuracies: list[float]
    """On the test images, in [0, 1], in the order of the verdict's seeds."""
    mean: float
    """Of the accuracies."""
    std: float | None
    """Of the accuracies over seeds (n - 1 in the denominator); None for one seed."""
    confusion: list[list[int]]
    """Counts of all seeds together (classes, classes): row = true class, column = predicted class."""


@dataclass(frozen=True)
class HardPair:
    """Two classes, and how many images of either were taken for the other, all seeds together."""

    classes: list[str]
    baseline: int
    """Mistakes of the baseline."""
    winner: int
    """Mistakes of the search's best recipe."""


@dataclass(frozen=True)
class Comparison:
    """What the refits of both recipes say, seed by seed."""

    winner: Side
    difference: Difference
    """Mean test accuracy of the winner minus that of the baseline, with its 95 % interval."""
    mcnemar_p: list[float]
    """Exact p of each seed, in the order of the verdict's seeds."""
    confusion_difference: list[list[int]]
    """The winner's confusion minus the baseline's."""
    hardest_before: HardPair
    """The pair that the baseline confuses most."""
    hardest_after: HardPair
    """The pair that the winner confuses most."""


@dataclass(frozen=True)
class Verdict:
    """The search's best recipe against the baseline, in plain values."""

    decision: Decision | None
    """None where no seed has both refits complete."""
    reason: str | None
    """Why there is no comparison: none could be made, or the baseline itself won the search; None where there is."""
    winner_trial: int
    """Its number in the search."""
    changes: dict[str, Value]
    """Where its recipe differs from the baseline's; empty where that won the search."""
    val_accuracy: float
    """Its validation accuracy in the search, in [0, 1]."""
    optimism: float | None
    """`val_accuracy` minus its mean test accuracy: what choosing the best of many promised too much."""
    seeds: list[int]
    """Of the refits that count, those with both recipes complete, as planned."""
    seeds_planned: int
    missing: list[str]
    """The refits that took a seed away, each with its reason."""
    baseline: Side | None
    """None where no seed counts."""
    comparison: Comparison | None


def choose(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the complete search trial with the highest validation accuracy, the earlier one of equals.

    The search's first trial is the baseline's: where no better one is found, it is what is returned, and where no
    other recipe was completed, there is nothing to choose from, hence None.
    """
    searched = sorted((trial for trial in trials if trial.plan.stage == "search"), key=lambda trial: trial.plan.number)
    complete = [trial for trial in searched if trial.state == "complete"]
    if all(trial.plan.recipe == searched[0].plan.recipe for trial in complete):
        return None
    return max(complete, key=lambda trial: trial.value or 0.0)


def final_seeds(seed: int, repeats: int) -> list[int]:
    """Return distinct seeds for the refits, none of them the search's own: its luck is what the winner was chosen by.

    They follow each other, and are short enough to be read; what is drawn from them is hashed (`seeding.py`), so that
    neighbours have nothing in common.
    """
    first = derive_seed(seed, "final") % 2**31
    return [first + repeat for repeat in range(repeats)]


def plan_finals(winner: TrialRecord, baseline: Recipe, seed: int, repeats: int) -> list[tuple[str, Recipe, int]]:
    """Plan the refits, (stage, recipe, seed) each, seed by seed, so that an early end leaves whole pairs.

    Of a pair, the one that trains more blocks goes first: where its frozen blocks end, the other's go on. Where the
    baseline itself won, it alone is refitted: for its test accuracy, and for a classifier to keep.
    """
    recipes = sorted(dict.fromkeys([baseline, winner.plan.recipe]), key=lambda recipe: -recipe.unfreeze_depth)
    return [("final", recipe, final) for final in final_seeds(seed, repeats) for recipe in recipes]


def judge(
    trials: Iterable[TrialRecord],
    *,
    labels: Sequence[int],
    baseline: Recipe,
    winner: TrialRecord,
    classes: Sequence[str],
) -> Verdict:
    """Compare the refits of the winner and of the baseline, seed by seed; a seed counts where both are complete.

    Args:
        trials: of which those of the stage 'final' are read, in any order.
        labels: the true class of each test image, in the order of the predictions.
        baseline: the recipe to beat.
        winner: from `choose`.
        classes: the names.
    """
    assert winner.value is not None
    finals = sorted((trial for trial in trials if trial.plan.stage == "final"), key=lambda trial: trial.plan.number)
    recipe = winner.plan.recipe
    before, after = _tests(finals, baseline), _tests(finals, recipe)
    planned = dict.fromkeys(trial.plan.seed for trial in finals)
    seeds = [seed for seed in planned if seed in before and seed in after]
    sides = [_side([tests[seed] for seed in seeds]) for tests in (before, after)] if seeds else None
    decision: Decision | None = None
    reason = comparison = None
    if recipe == baseline:
        decision, reason = "no better", "no recipe of the search surpassed it on the validation images"
    elif sides is None:
        reason = f"none of {count_seeds(len(planned))} has both refits complete"
    else:
        right = [_correct([tests[seed] for seed in seeds], labels) for tests in (before, after)]
        difference = paired_difference(*right, seed=derive_seed(seeds[0], "bootstrap"))
        decision = decide(difference)
        confusions = [np.array(side.confusion) for side in sides]
        comparison = Comparison(
            winner=sides[1],
            difference=difference,
            mcnemar_p=[mcnemar_exact(*pair) for pair in zip(*right, strict=True)],
            confusion_difference=(confusions[1] - confusions[0]).tolist(),
            hardest_before=_hard_pair(confusions[0], *sides, classes=classes),
            hardest_after=_hard_pair(confusions[1], *sides, classes=classes),
        )
    return Verdict(
        decision=decision,
        reason=reason,
        winner_trial=winner.plan.number,
        changes={field: value for field, value in recipe.to_dict().items() if value != getattr(baseline, field)},
        val_accuracy=winner.value,
        optimism=winner.value - sides[1].mean if sides else None,
        seeds=seeds,
        seeds_planned=len(planned),
        missing=[
            f"#{trial.plan.key} {'baseline' if trial.plan.recipe == baseline else 'winner'}: "
            f"{trial.reason or f'{trial.state}.'}"
            for trial in finals
            if trial.plan.seed not in seeds and trial.state != "complete"
        ],
        baseline=sides[0] if sides else None,
        comparison=comparison,
    )


def recall_verdict(record: Record) -> Verdict | None:
    """Return the verdict of a search whose refits have ended, from its record; None where it has none yet."""
    winner, labels = choose(record.trials()), record.noted("test_labels")
    if winner is None or labels is None:
        return None
    return judge(
        record.finals(),
        labels=labels,
        baseline=record.trials()[0].plan.recipe,
        winner=winner,
        classes=record.manifest["classes"],
    )


def verdict_metrics(verdict: Verdict) -> dict[str, float]:
    """Return a verdict's figures under the names that they have in MLflow, fractions all; none that it lacks."""
    comparison = verdict.comparison
    found: dict[str, float | None] = {"optimism": verdict.optimism}
    if verdict.baseline:
        found |= {"baseline_test_accuracy": verdict.baseline.mean, "baseline_test_accuracy_std": verdict.baseline.std}
    if comparison:
        found |= {"test_accuracy": comparison.winner.mean, "test_accuracy_std": comparison.winner.std}
        found |= {f"difference_{name}": value for name, value in asdict(comparison.difference).items()}
    return {name: value for name, value in found.items() if value is not None}


def _tests(finals: Sequence[TrialRecord], recipe: Recipe) -> dict[int, Evaluation]:
    """Return the tests of a recipe by seed; where one was run again, the first that was completed."""
    matching = [trial for trial in finals if trial.plan.recipe == recipe and trial.state == "complete"]
    return {trial.plan.seed: trial.test for trial in reversed(matching) if trial.test}


def _side(tests: Sequence[Evaluation]) -> Side:
    accuracies = [test.accuracy for test in tests]
    return Side(
        accuracies=accuracies,
        mean=float(np.mean(accuracies)),
        std=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        confusion=np.sum([test.confusion for test in tests], axis=0).tolist(),
    )


def _correct(tests: Sequence[Evaluation], labels: Sequence[int]) -> Flags:
    """Return which images were classified rightly (seeds, images)."""
    flags: Flags = np.array([test.predictions for test in tests]) == np.asarray(labels)
    counted = [np.trace(test.confusion) for test in tests]
    assert np.array_equal(flags.sum(axis=1), counted), "the labels must be those that the classifiers were tested with"
    return flags


def _hard_pair(confusion: np.ndarray, before: Side, after: Side, *, classes: Sequence[str]) -> HardPair:
    """Return the hardest pair of one confusion, with the mistakes of both sides."""
    first, second, *_ = hardest_pair(confusion)
    mistakes = [side.confusion[first][second] + side.confusion[second][first] for side in (before, after)]
    return HardPair([classes[first], classes[second]], *mistakes)


def count_seeds(number: int, of: int | None = None) -> str:
    """Return '1 seed', '3 seeds' or '2 of 3 seeds'."""
    total = number if of is None else of
    return f"{number if number == total else f'{number} of {total}'} seed{'' if total == 1 else 's'}"
