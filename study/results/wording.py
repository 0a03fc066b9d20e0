"""Put a verdict into words.

Computes nothing.
"""

from collections.abc import Mapping

from study.results.verdict import Side, Value, Verdict, count_seeds

SHORT = {"unfreeze_depth": "depth", "batch_size": "batch"}
"""Fields of a recipe that are called otherwise in sentences."""


def sentence(verdict: Verdict | None) -> str:
    """Say the verdict to people; None is that of a search in which `choose` had nothing to choose from."""
    if verdict is None:
        return "No verdict: no trial of the search besides the baseline's was completed."
    if verdict.decision is None:
        return f"No verdict: {verdict.reason}."
    if verdict.comparison is None:
        return f"No better than the baseline: {verdict.reason}."
    difference = verdict.comparison.difference
    mean, low, high = _points(difference.mean), _points(difference.low), _points(difference.high)
    seeds = count_seeds(len(verdict.seeds), verdict.seeds_planned)
    found = f"search's best recipe ({_describe(verdict.changes)})"
    match verdict.decision:
        case "better":
            said = f"The {found} beats the baseline on the test images by {mean} points"
            said += f" (95 % interval {low} to {high}, {seeds})."
        case "worse":
            said = f"Worse than the baseline: the {found} differs from it by {mean} points on the test images"
            said += f" (95 % interval {low} to {high}, {seeds})."
        case _:
            said = f"No better than the baseline: the {found} differs from it by {mean} points on the test images,"
            said += f" and the 95 % interval from {low} to {high} holds zero ({seeds})."
    if len(verdict.seeds) == 1:
        said += " One seed tells of these two trained classifiers, not of their recipes."
    return said


def details(verdict: Verdict) -> list[tuple[str, str]]:
    """Return what stands behind the sentence, as (name, text) lines; accuracies in percent."""
    lines = []
    comparison = verdict.comparison
    if verdict.baseline:
        lines.append(("baseline", _describe_side(verdict.baseline)))
    if comparison:
        lines.append(("winner", _describe_side(comparison.winner)))
    if verdict.optimism is not None:
        validated = f"{100 * verdict.val_accuracy:.2f} % on validation in the search (trial {verdict.winner_trial})"
        lines.append(("optimism", f"{_points(verdict.optimism)} points: {validated}"))
    if comparison:
        lines.append(("McNemar", "exact p by seed " + ", ".join(f"{p:.2g}" for p in comparison.mcnemar_p)))
        for name, pair in (("before", comparison.hardest_before), ("after", comparison.hardest_after)):
            mistakes = f"mistaken {pair.baseline} times by the baseline, {pair.winner} by the winner"
            lines.append((f"hardest {name}", f"{' and '.join(pair.classes)}: {mistakes}"))
    return lines + [("missing", refit) for refit in verdict.missing]


def _describe(changes: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{SHORT.get(field, field.replace('_', ' '))} {f'{value:.3g}' if isinstance(value, float) else value}"
        for field, value in changes.items()
    )


def _describe_side(side: Side) -> str:
    spread = "" if side.std is None else f" ± {100 * side.std:.2f}"
    by_seed = ", ".join(f"{100 * accuracy:.2f}" for accuracy in side.accuracies)
    return f"{100 * side.mean:.2f} %{spread} on the test images; by seed {by_seed}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:z.1f}"
