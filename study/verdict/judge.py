"""Decide whether the best recipe of a search beats the baseline: which refits are needed, and what they show.

Reads records and plans trials. Runs nothing, opens no test set, and leaves the arithmetic to `statistics.py`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from study.config.plan import Plan, Repeats
from study.config.recipe import Recipe
from study.results.arrays import plain
from study.results.ledger import Looks, count_looks, earlier_p_values
from study.results.metrics import MINIMISED, NAMES, Evaluation, add_up, count_right, nothing_learnt, score
from study.results.record import Record
from study.results.trial_record import PRUNED, TrialRecord
from study.seeding import derive_seed
from study.verdict.metric_intervals import metric_difference
from study.verdict.statistics import (
    CONFIDENCE,
    FIRST_SEEDS,
    LOOKS,
    Decision,
    Difference,
    Flags,
    Outcomes,
    compare_recipes,
    decide,
    hardest_pair,
    holm,
    level_of_look,
    mcnemar_exact,
)
from study.verdict.verdict import Candidate, Comparison, HardPair, Side, Verdict, count_seeds


def choose(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the complete search trial with the best score; of equal trials, that of the lower validation loss.

    Of trials that are equal in both, the earliest is returned, so the baseline, which is the first trial, is returned
    if no trial is better. If no trial is complete, the best of those that the pruner stopped is returned; those that
    the time budget stopped may yet be continued by a larger one. None if there is neither.
    """
    searched = sorted((trial for trial in trials if trial.plan.stage == "search"), key=lambda trial: trial.number)
    complete = [trial for trial in searched if trial.state == "complete"]
    pruned = [trial for trial in searched if trial.reason == PRUNED and trial.score is not None]
    return max(complete or pruned, key=rank, default=None)


def rank(trial: TrialRecord) -> tuple[float, float]:
    """Return the key by which the trials of a search are ranked, more is better: score, then less validation loss."""
    loss = trial.epochs[-1].val_loss if trial.epochs else None
    return -math.inf if trial.score is None else trial.score, -math.inf if loss is None else -loss


def final_seeds(seed: int, repeats: int) -> list[int]:
    """Return distinct seeds for the refits, without the search's own seed: the winner was chosen partly by its luck.

    The seeds are consecutive, and short enough to read. `seeding.py` hashes them, so that consecutive seeds give
    independent random numbers.
    """
    first = derive_seed(seed, "final") % 2**31
    return [first + repeat for repeat in range(repeats)]


def plan_finals(
    finals: Sequence[TrialRecord],
    *,
    winner: TrialRecord,
    baseline: Recipe,
    labels: Sequence[int],
    seed: int,
    repeats: Repeats,
    earlier: Sequence[float] = (),
    metric: str = "accuracy",
) -> list[Plan]:
    """Plan the refits that are still to be run, seed by seed, so that an early end leaves complete pairs.

    In each pair, the recipe that trains more blocks goes first: the longer prefix of the other starts from its cached
    outputs. If the baseline won, only the baseline is refitted: for its test accuracy, and for a classifier to save.
    With `repeats` auto, the refits of two seeds are followed by those of one more, up to six, until the winner is
    shown to be better, by three seeds at least, or its mean gain is not above 0. A baseline that won gets three. Only
    recorded results decide, so that a resumed study plans the same.

    Args:
        finals: refits planned so far, in any state.
        winner: trial that `choose` returned.
        baseline: recipe to beat.
        labels: true class of each test image, in the order of the predictions.
        seed: seed of the study.
        repeats: number of seeds, or auto.
        earlier: p-values of earlier verdicts on the same test images.
        metric: metric that decides the study.

    Returns:
        Plans without numbers; none if the verdict can be reached.
    """
    recipes = sorted(dict.fromkeys([baseline, winner.plan.recipe]), key=lambda recipe: -recipe.unfreeze_depth)
    planned = len({trial.plan.seed for trial in finals})
    fewest = FIRST_SEEDS if len(recipes) > 1 else min(LOOKS)
    seeds = max(planned, fewest) if repeats == "auto" else repeats
    ended = [replace(trial.plan, number=None) for trial in finals if trial.finished]
    plans = [Plan(None, "final", recipe, final) for final in final_seeds(seed, seeds) for recipe in recipes]
    left = [plan for plan in plans if plan not in ended]
    if left or repeats != "auto" or seeds == max(LOOKS):
        return left
    if len(recipes) == 1 or not _is_open(*_pair(finals, baseline, winner.plan.recipe), labels, earlier, metric):
        return []
    return [Plan(None, "final", recipe, final_seeds(seed, seeds + 1)[-1]) for recipe in recipes]


def _is_open(
    before: Mapping[int, Evaluation],
    after: Mapping[int, Evaluation],
    labels: Sequence[int],
    earlier: Sequence[float],
    metric: str,
) -> bool:
    """Return whether more seeds may show that the second recipe is better: it leads, but not by enough."""
    if not before:
        return False
    difference = _compare(before, after, labels, metric, level_of_look(len(before)))
    shown = len(before) >= min(LOOKS) and decide(difference, earlier) != "no better"
    return difference.mean > 0 and not shown


def _compare(
    before: Mapping[int, Evaluation], after: Mapping[int, Evaluation], labels: Sequence[int], metric: str, level: float
) -> Difference:
    """Return the gain of the second recipe over the first; `level` is the interval's error probability.

    Two shares differ by 1 at most, and so do their interval's bounds: with few images and seeds they would lie outside.
    """
    first, second = [*before.values()], [*after.values()]
    if metric == "log_loss":
        return compare_recipes(_negative_losses(first), _negative_losses(second), level=level)
    if metric == "accuracy":
        found = compare_recipes(_correct(before, labels), _correct(after, labels), level=level)
    else:
        found = metric_difference(metric, first, second, labels, seed=next(iter(before)), level=level)
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def judge(
    trials: Iterable[TrialRecord],
    *,
    labels: Sequence[int],
    baseline: Recipe,
    winner: TrialRecord,
    classes: Sequence[str],
    stops_early: bool = False,
    earlier: Sequence[float] = (),
    looks: Looks | None = None,
    metric: str = "accuracy",
) -> Verdict:
    """Compare the refits of the winner and of the baseline, seed by seed; a seed counts if both are complete.

    Args:
        trials: trials in any order; only those of the stage 'final' are read.
        labels: index of the true class of each test image, in the order of the predictions.
        baseline: recipe to beat.
        winner: trial that `choose` returned.
        classes: names of the classes.
        stops_early: whether the number of seeds depended on the results.
        earlier: p-values of earlier verdicts on the same test images.
        looks: openings of the test images until now.
        metric: metric that decides the study.
    """
    finals = sorted((trial for trial in trials if trial.plan.stage == "final"), key=lambda trial: trial.number)
    recipe = winner.plan.recipe
    planned = dict.fromkeys(trial.plan.seed for trial in finals)
    before, after = _pair(finals, baseline, recipe)
    seeds = [*before]
    sides = [_side([*tests.values()], metric) for tests in (before, after)] if seeds else None
    decision: Decision | None = None
    reason: str | None = None
    comparison: Comparison | None = None
    if recipe == baseline:
        decision, better = "no better", "lower" if metric in MINIMISED else "higher"
        reason = f"no other completed recipe of the search reached a {better} validation {NAMES[metric]}"
    elif sides is None:
        reason = f"none of {count_seeds(len(planned))} has complete refits of both recipes"
    else:
        comparison = _compare_sides(before, after, sides, labels, classes, metric, stops_early, earlier)
        decision = decide(comparison.difference, earlier)
    reached = winner.score
    assert reached is not None
    return Verdict(
        decision=decision,
        reason=reason,
        winner_trial=winner.number,
        changes=recipe.changes_from(baseline),
        val_accuracy=reached if winner.val_accuracy is None else winner.val_accuracy,
        optimism=reached - _mean_score(sides[1], metric) if sides else None,
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
        stops_early=stops_early,
        reused=[f"#{trial.plan.key} from study {trial.reused_from}" for trial in finals if trial.reused_from],
        looks=looks,
        metric=metric,
        val_value=score(metric, reached),
        nothing_learnt={
            name: why
            for name, side in zip(("baseline", "winner")[: 1 if comparison is None else 2], sides or [], strict=False)
            if (why := nothing_learnt(side.confusion, classes, metric))
        },
    )


def _compare_sides(
    before: Mapping[int, Evaluation],
    after: Mapping[int, Evaluation],
    sides: Sequence[Side],
    labels: Sequence[int],
    classes: Sequence[str],
    metric: str,
    stops_early: bool,
    earlier: Sequence[float],
) -> Comparison:
    right = [_correct(tests, labels) for tests in (before, after)]
    # Without a gain nothing is called better, so the looks before need no allowance.
    gained = _mean_score(sides[1], metric) > _mean_score(sides[0], metric)
    level = level_of_look(len(before)) if stops_early and gained else 1 - CONFIDENCE
    difference = _compare(before, after, labels, metric, level)
    confusions = [np.array(side.confusion) for side in sides]
    return Comparison(
        winner=sides[1],
        difference=difference,
        mcnemar_p=[mcnemar_exact(*pair) for pair in zip(*right, strict=True)],
        confusion_difference=(confusions[1] - confusions[0]).tolist(),
        hardest_before=_hard_pair(confusions[0], *sides, classes=classes, metric=metric),
        hardest_after=_hard_pair(confusions[1], *sides, classes=classes, metric=metric),
        corrected_p=None if difference.p is None else holm(difference.p, earlier),
        earlier_verdicts=len(earlier),
    )


def reach_verdict(
    record: Record, winner: TrialRecord, labels: Sequence[int], reranked: Sequence[Candidate] = ()
) -> Verdict:
    """Judge the refits of a search and store the verdict in its record, where `stored_verdict` reads it.

    Args:
        record: record of a search whose refits have ended.
        winner: trial that `choose` returned.
        labels: true class of each test image, in the order of the predictions.
        reranked: candidates of the re-ranking, the best first.
    """
    verdict = judge(
        record.finals(),
        labels=labels,
        baseline=record.trials()[0].plan.recipe,
        winner=winner,
        classes=record.manifest.classes,
        stops_early=record.manifest.design.repeats == "auto",
        earlier=earlier_p_values(record),
        looks=count_looks(record),
        metric=record.manifest.design.metric,
    )
    verdict = replace(verdict, reranked=[*reranked])
    record.note("test_labels", list(labels))
    record.note("verdict", plain(verdict))
    return verdict


def _pair(
    finals: Iterable[TrialRecord], baseline: Recipe, recipe: Recipe
) -> tuple[dict[int, Evaluation], dict[int, Evaluation]]:
    """Return the tests of both recipes by seed, for the seeds that count, in the planned order."""
    ordered = sorted(finals, key=lambda trial: trial.number)
    before, after = _tests(ordered, baseline), _tests(ordered, recipe)
    seeds = [seed for seed in dict.fromkeys(trial.plan.seed for trial in ordered) if seed in before and seed in after]
    return {seed: before[seed] for seed in seeds}, {seed: after[seed] for seed in seeds}


def _tests(finals: Sequence[TrialRecord], recipe: Recipe) -> dict[int, Evaluation]:
    """Return the tests of a recipe by seed; if a seed was refitted again, the first complete refit counts."""
    matching = [trial for trial in finals if trial.plan.recipe == recipe and trial.state == "complete"]
    return {trial.plan.seed: trial.test for trial in reversed(matching) if trial.test}


def _side(tests: Sequence[Evaluation], metric: str) -> Side:
    accuracies = [test.accuracy for test in tests]
    return Side(
        accuracies=accuracies,
        mean=float(np.mean(accuracies)),
        std=float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        confusion=add_up(test.confusion for test in tests).tolist(),
        values=[] if metric == "accuracy" else [test.metrics[metric] for test in tests],
    )


def _mean_score(side: Side, metric: str) -> float:
    """Return the mean of the study's metric with the sign by which more is better."""
    return score(metric, float(np.mean(side.values))) if side.values else side.mean


def _correct(tests: Mapping[int, Evaluation], labels: Sequence[int]) -> Flags:
    """Return which images were classified correctly, (seeds, images) bool; `tests` by seed."""
    flags: Flags = np.array([test.predictions for test in tests.values()]) == np.asarray(labels)
    counted = [count_right(test.confusion) for test in tests.values()]
    assert np.array_equal(flags.sum(axis=1), counted), "the labels must be those that the classifiers were tested with"
    return flags


def _hard_pair(
    confusion: np.ndarray, before: Side, after: Side, *, classes: Sequence[str], metric: str
) -> HardPair | None:
    """Return the pair that is confused most in `confusion`, with the confusions of both sides."""
    if nothing_learnt(confusion.tolist(), classes, metric):
        return None
    first, second, *counts = hardest_pair(confusion)
    if not sum(counts):
        return None
    confused = [side.confusion[first][second] + side.confusion[second][first] for side in (before, after)]
    return HardPair([classes[first], classes[second]], *confused)


def _negative_losses(tests: Sequence[Evaluation]) -> Outcomes:
    """Return each image's loss with each seed, (seeds, images), with the sign by which more is better."""
    return -np.array([test.losses for test in tests], dtype=float)
