"""Put a verdict into words.

Computes nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import fmean

import numpy as np

from study.formatting import format_bounds, format_points, format_value
from study.results.metrics import MINIMISED, NAMES, count_images, count_right, format_metric, largest_class, score
from study.results.trial_record import TrialRecord
from study.verdict.judge import rank
from study.verdict.statistics import CONFIDENCE
from study.verdict.verdict import Side, Value, Verdict, count_seeds

SHORT = {"unfreeze_depth": "depth", "batch_size": "batch"}
"""Shorter names of recipe fields for sentences."""


def sentence(verdict: Verdict | None) -> str:
    """Return the verdict as text for people; None stands for a search in which `choose` returned None."""
    if verdict is None:
        return "No verdict: no trial of the search has a result."
    if verdict.decision is None:
        return f"No verdict: {verdict.reason}."
    if verdict.comparison is None:
        return f"Not shown to be better than the baseline: {verdict.reason}.{_warn_of_nothing(verdict)}"
    difference = verdict.comparison.difference
    amounts = difference.mean, difference.low, difference.high
    if verdict.metric in MINIMISED:  # say how the metric itself changes; the difference counts less as a gain
        mean, high, low = format_bounds(*(-amount for amount in amounts), scale=1)
    else:
        mean, low, high = format_bounds(*amounts)
    begins = {"better": "Better than the baseline", "worse": "Worse than the baseline"}
    verb = "raises" if verdict.decision == "better" and verdict.metric not in MINIMISED else "changes"
    seeds = count_seeds(len(verdict.seeds), verdict.seeds_planned)
    interval = f" (95 % interval {low} to {high}, {seeds})"
    if difference.low == difference.high == 0:
        interval = f", the same with every seed and every image ({seeds})"
    text = (
        f"{begins.get(verdict.decision, 'Not shown to be better than the baseline')}: the search's best recipe"
        f" ({_describe(verdict.changes)}) {verb} the test {NAMES[verdict.metric]} by {mean}"
        f"{'' if verdict.metric in MINIMISED else ' percentage points'}{interval}."
    )
    if verdict.decision == "no better" and (1 if difference.p is None else difference.p) <= 1 - CONFIDENCE:
        number = verdict.comparison.earlier_verdicts + 1
        text += f" The interval excludes zero, but this is verdict number {number} on these test images: the p-value,"
        text += f" corrected for the others, is {verdict.comparison.corrected_p:.2g}."
    elif verdict.decision == "no better" and difference.detectable:
        text += _power(difference.detectable, verdict)
    text += _warn_of_nothing(verdict)
    if len(verdict.seeds) == 1:
        text += " With one seed, this compares two trained classifiers, not two recipes."
    return text


def _power(detectable: float, verdict: Verdict) -> str:
    """Return a further sentence on the true gain that 4 of 5 such studies would have found, if there can be one."""
    assert verdict.baseline
    before = fmean(verdict.baseline.values) if verdict.baseline.values else verdict.baseline.mean
    if detectable > (before if verdict.metric in MINIMISED else 1 - before):
        text = " Not even the largest possible gain would have been found by 4 of 5 such studies."
        return f"{text} Use more seeds or test images."
    gain = f"{detectable:.2g}" if verdict.metric in MINIMISED else f"{format_points(detectable)} points"
    return f" A true gain of {gain} would have been found by 4 of 5 such studies."


def details(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the figures behind the sentence, as (name, text) lines; accuracies in percent."""
    lines = []
    comparison = verdict.comparison
    if verdict.baseline:
        lines += _describe_side("baseline", verdict.baseline, verdict)
    if comparison:
        lines += _describe_side("winner", comparison.winner, verdict)
    if verdict.optimism is not None:
        name = NAMES[verdict.metric]
        value = format_metric(verdict.metric, verdict.val_accuracy if verdict.val_value is None else verdict.val_value)
        validated = f"validation {name} in the search ({value}, trial {verdict.winner_trial})"
        if verdict.metric in MINIMISED:
            lines.append(("optimism", f"{verdict.optimism:z.4f}: mean test {name} minus {validated}"))
        else:
            points = f"{format_points(verdict.optimism)} percentage points"
            lines.append(("optimism", f"{points}: {validated} minus mean test {name}"))
    if comparison:
        if verdict.stops_early:
            allowance = "; interval and p-value allow for the choice" if comparison.difference.mean > 0 else ""
            lines.append(("pairs of seeds", f"{len(verdict.seeds)}, as many as the answer needed{allowance}"))
        if comparison.difference.p is not None:
            chance = "new test images and new seeds" if len(verdict.seeds) > 1 else "new test images, not for new seeds"
            text = f"{comparison.difference.p:.2g}, for {chance}"
            if others := comparison.earlier_verdicts:
                text += f"; {comparison.corrected_p:.2g} corrected for {others} earlier on these test images (Holm)"
            lines.append(("p-value", text))
        lines.append(("McNemar", "exact p-value by seed: " + ", ".join(f"{p:.2g}" for p in comparison.mcnemar_p)))
        before, after = comparison.hardest_before, comparison.hardest_after
        sides = {"both": before} if before == after else {"the baseline": before, "the winner": after}
        for side, pair in sides.items():
            if pair is None:
                continue
            confused = f"confused {pair.baseline} times by the baseline, {pair.winner} times by the winner"
            lines.append(("hardest pair", f"of {side}: {' and '.join(pair.classes)}, {confused}"))
    if verdict.reused:
        lines.append(("reused", f"refits of the baseline: {', '.join(verdict.reused)}"))
    if verdict.reranked:
        metric, seeds = verdict.metric, len(verdict.reranked[0].accuracies)
        means = [f"#{one.trial} {format_metric(metric, score(metric, one.mean))}" for one in verdict.reranked]
        lines.append(("re-ranked", f"{', '.join(means)}: mean validation {NAMES[metric]} over {seeds} seeds"))
    if verdict.looks:
        lines.append(("test images", str(verdict.looks)))
    return lines + [("missing", refit) for refit in verdict.missing]


def _warn_of_nothing(verdict: Verdict) -> str:
    """Return a further sentence if a recipe has learnt nothing on the test images; else an empty text."""
    found = verdict.nothing_learnt
    if not found:
        return ""
    if len(set(found.values())) < len(found):
        return f" But both recipes have learnt nothing: {found['winner']}."
    return " But " + ", and ".join(f"the {name} has learnt nothing: {reason}" for name, reason in found.items()) + "."


def describe_closeness(trials: Sequence[TrialRecord], metric: str) -> str | None:
    """Say by how few validation images the best complete trials of a search differ; None if they differ by more.

    Few are at most as many as one standard error of the best trial's accuracy, and at least one. For accuracy, images
    are counted that one trial classified correctly and the other did not, in balance. For other metrics, the fewest
    images that must have got another prediction are counted. A log loss differs without either, so it is left out.
    """
    ranked = sorted(
        (trial for trial in trials if trial.state == "complete" and trial.confusion), key=rank, reverse=True
    )
    if len(ranked) < 2 or metric in MINIMISED:
        return None
    confusions = [trial.confusion for trial in ranked if trial.confusion]
    images, right = count_images(confusions[0]), count_right(confusions[0])
    few = max(1, int(np.sqrt(right * (images - right) / images)))
    if metric == "accuracy":
        apart = [abs(right - count_right(other)) for other in confusions[1:]]
    else:
        best = np.asarray(confusions[0])
        apart = [int(np.abs(best - np.asarray(other)).sum()) // 2 for other in confusions[1:]]
    near = list(takewhile(lambda count: count <= few, apart))
    if not near:
        return None
    others = ", ".join(f"#{trial.plan.key}" for trial in ranked[1 : len(near) + 1][:5]) + ", …" * (len(near) > 5)
    count = max(near)
    by = f"at most {count}" if len(near) > 1 and count else "none" if not count else str(count)
    return f"#{ranked[0].plan.key} and {others} differ by {by} of {images} validation images"


def _describe(changes: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{SHORT.get(field, field.replace('_', ' '))} {format_value(value)}" for field, value in changes.items()
    )


def _describe_side(name: str, side: Side, verdict: Verdict) -> list[tuple[str, str]]:
    spread = "" if side.std is None else f" ± {100 * side.std:.2f}"
    by_seed = ", ".join(f"{100 * accuracy:.2f}" for accuracy in side.accuracies)
    share = largest_class(side.confusion)[1]
    lines = [(name, f"test accuracy {100 * side.mean:.2f} %{spread}; by seed: {by_seed}; largest class {share:.2%}")]
    if side.values:
        mean = format_metric(verdict.metric, fmean(side.values))
        by_seed = ", ".join(format_metric(verdict.metric, value) for value in side.values)
        lines.insert(0, (name, f"test {NAMES[verdict.metric]} {mean}; by seed: {by_seed}"))
    if why := verdict.nothing_learnt.get(name):
        lines.append((name, f"has learnt nothing: {why}"))
    return lines
