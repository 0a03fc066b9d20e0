"""Put a verdict into words.

Computes nothing.
"""

from collections.abc import Mapping

from study.formatting import format_points, format_value
from study.results.statistics import CONFIDENCE
from study.results.verdict import Side, Value, Verdict, count_seeds

SHORT = {"unfreeze_depth": "depth", "batch_size": "batch"}
"""Shorter names of recipe fields for sentences."""


def sentence(verdict: Verdict | None) -> str:
    """Return the verdict as text for people; None stands for a search in which `choose` returned None."""
    if verdict is None:
        return "No verdict: no trial of the search has a result."
    if verdict.decision is None:
        return f"No verdict: {verdict.reason}."
    if verdict.comparison is None:
        return f"Not shown to be better than the baseline: {verdict.reason}."
    difference = verdict.comparison.difference
    mean, low, high = format_points(difference.mean), format_points(difference.low), format_points(difference.high)
    begins = {"better": "Better than the baseline", "worse": "Worse than the baseline"}
    text = (
        f"{begins.get(verdict.decision, 'Not shown to be better than the baseline')}: the search's best recipe"
        f" ({_describe(verdict.changes)}) {'raises' if verdict.decision == 'better' else 'changes'} the test accuracy"
        f" by {mean} percentage points (95 % interval {low} to {high},"
        f" {count_seeds(len(verdict.seeds), verdict.seeds_planned)})."
    )
    if verdict.decision == "no better" and (difference.p or 1) <= 1 - CONFIDENCE:
        number = verdict.comparison.earlier_verdicts + 1
        text += f" The interval excludes zero, but this is verdict number {number} on these test images: the p-value,"
        text += f" corrected for the others, is {verdict.comparison.corrected_p:.2g}."
    elif verdict.decision == "no better" and difference.detectable:
        found = "would have been found by 4 of 5 such studies"
        text += f" A true gain of {format_points(difference.detectable)} points {found}."
    if len(verdict.seeds) == 1:
        text += " With one seed, this compares two trained classifiers, not two recipes."
    return text


def details(verdict: Verdict) -> list[tuple[str, str]]:
    """Return the figures behind the sentence, as (name, text) lines; accuracies in percent."""
    lines = []
    comparison = verdict.comparison
    if verdict.baseline:
        lines.append(("baseline", _describe_side(verdict.baseline)))
    if comparison:
        lines.append(("winner", _describe_side(comparison.winner)))
    if verdict.optimism is not None:
        validated = (
            f"validation accuracy in the search ({100 * verdict.val_accuracy:.2f} %, trial {verdict.winner_trial})"
        )
        lines.append(
            ("optimism", f"{format_points(verdict.optimism)} percentage points: {validated} minus mean test accuracy")
        )
    if comparison:
        if verdict.stops_early:
            pairs = f"{len(verdict.seeds)}, as many as the answer needed; interval and p-value allow for the choice"
            lines.append(("pairs of seeds", pairs))
        if comparison.difference.p is not None:
            text = f"{comparison.difference.p:.2g}, for new test images and new seeds"
            if others := comparison.earlier_verdicts:
                text += f"; {comparison.corrected_p:.2g} corrected for {others} earlier on these test images (Holm)"
            lines.append(("p-value", text))
        lines.append(("McNemar", "exact p-value by seed: " + ", ".join(f"{p:.2g}" for p in comparison.mcnemar_p)))
        for side, pair in (("baseline", comparison.hardest_before), ("winner", comparison.hardest_after)):
            confused = f"confused {pair.baseline} times by the baseline, {pair.winner} times by the winner"
            lines.append(("hardest pair", f"of the {side}: {' and '.join(pair.classes)}, {confused}"))
    if verdict.reused:
        lines.append(("reused", f"refits of the baseline: {', '.join(verdict.reused)}"))
    if verdict.reranked:
        means = ", ".join(f"#{candidate.trial} {100 * candidate.mean:.2f} %" for candidate in verdict.reranked)
        lines.append(
            ("re-ranked", f"{means}: mean validation accuracy over {len(verdict.reranked[0].accuracies)} seeds")
        )
    if verdict.looks:
        lines.append(("test images", str(verdict.looks)))
    return lines + [("missing", refit) for refit in verdict.missing]


def _describe(changes: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{SHORT.get(field, field.replace('_', ' '))} {format_value(value)}" for field, value in changes.items()
    )


def _describe_side(side: Side) -> str:
    spread = "" if side.std is None else f" ± {100 * side.std:.2f}"
    by_seed = ", ".join(f"{100 * accuracy:.2f}" for accuracy in side.accuracies)
    return f"test accuracy {100 * side.mean:.2f} %{spread}; by seed: {by_seed}"
