"""Screen the models of a search by their linear probes, and plan the search's first trials.

Sees validation results only. `training/probe.py` fits the probes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from study.config.plan import Design, Plan, Proposal, probe_recipe
from study.config.recipe import Recipe
from study.config.search_space import SearchSpace
from study.formatting import format_duration, format_value
from study.results.metrics import NAMES, count_images, count_right, format_metric
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.judge import rank
from study.verdict.statistics import accuracy_interval

HOPELESS = 2.0
"""A model is hopeless if its probe makes at least this many times the errors of the best probe, beyond chance.

Accuracies of linear probes and of fine-tuned networks agree closely in order (Kornblith et al., arXiv:1805.08974,
Spearman's correlation above 0.9), but fine-tuning narrows the gaps, so a small gap excludes nothing.
"""
PORTFOLIO_SHARE = 3
"""The first proposals take at most one trial in this many, so that most are left to the sampler."""


def plan_screens(design: Design, seed: int) -> list[Plan]:
    """Plan one probe for each model that a search compares; none if it searches one model."""
    if design.space is None:
        return []
    recipes = [probe_recipe(design.space.recipe({"model": model})) for model in design.screened]
    return [Plan(None, "screen", recipe, seed) for recipe in recipes]


def rank_probes(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the complete probes, the best first; of equal ones, the one with the lower loss."""
    return sorted((trial for trial in trials if trial.state == "complete"), key=rank, reverse=True)


def promising_models(record: Record) -> list[str]:
    """Return the models that are worth fine-tuning, the best probe first; all of them if no probe is complete."""
    ranked = rank_probes(record.screens())
    metric = record.manifest.design.metric
    kept = [trial.plan.recipe.model for trial in ranked if not is_hopeless(trial, ranked[0], metric)]
    return kept or [*record.manifest.design.screened]


def is_hopeless(trial: TrialRecord, best: TrialRecord, metric: str) -> bool:
    """Return whether a probe is so much worse than the best one that its model is not fine-tuned.

    Its errors must be HOPELESS times those of the best, by the metric and by accuracy, and the 95 % intervals of both
    accuracies must lie apart. A log loss has no errors to count, so there accuracy alone decides.
    """
    (low, _), (_, high) = accuracy_bounds(best), accuracy_bounds(trial)
    names = {"accuracy", metric} - {"log_loss"}
    far = all(1 - trial.metrics[name] >= HOPELESS * (1 - best.metrics[name]) for name in names)
    return high < low and far


def accuracy_bounds(trial: TrialRecord) -> tuple[float, float]:
    """Return the 95 % interval (Wilson) of a trial's accuracy; it covers images, not seeds."""
    confusion = trial.confusion
    assert confusion
    return accuracy_interval(count_right(confusion), count_images(confusion))


@dataclass(frozen=True)
class ProbeRow:
    """What a model's linear probe has shown."""

    model: str
    metrics: Mapping[str, float]
    """All metrics on the validation images, by their names."""
    low: float
    """Lower bound of the accuracy's 95 % interval (Wilson), in [0, 1]; it covers images, not seeds."""
    high: float
    seconds: float
    """Device time of the probe."""
    parameters: int
    """Number of the whole network's parameters."""
    predict_images_per_s: float
    """Images that the whole network classifies in a second, on the probe's device."""
    hopeless: bool
    """Whether a search would not fine-tune the model."""
    nothing_learnt: str | None = None
    """Why the probe has learnt nothing; None if it has learnt something."""


def probe_rows(record: Record) -> list[ProbeRow]:
    """Return a row for each complete probe, the best first: a study's own, or those before a search."""
    design = record.manifest.design
    ranked = rank_probes(record.trials() if design.stage == "probe" else record.screens())
    rows = []
    for trial in ranked:
        low, high = accuracy_bounds(trial)
        rows.append(
            ProbeRow(
                model=trial.plan.recipe.model,
                metrics=trial.metrics,
                low=low,
                high=high,
                seconds=trial.seconds,
                parameters=trial.facts["parameters"],
                predict_images_per_s=trial.facts["predict_images_per_s"],
                hopeless=is_hopeless(trial, ranked[0], design.metric),
                nothing_learnt=trial.nothing_learnt(record.manifest),
            )
        )
    return rows


def probe_sentence(rows: Sequence[ProbeRow], metric: str) -> str:
    """Return the result of probes in a sentence or two; `metric` is what ranks them."""
    if not rows:
        return "No probe is complete."
    best, *others = rows
    if best.nothing_learnt:
        return f"No probe has learnt anything: in that of {best.model}, the first, {best.nothing_learnt}."
    reached = (
        "" if metric == "accuracy" else f"has a {NAMES[metric]} of {format_metric(metric, best.metrics[metric])}, and "
    )
    found = (
        f"{best.model} has the most useful features: a linear classifier of them {reached}is right on"
        f" {best.metrics['accuracy']:.2%} of the validation images (95 % interval {best.low:.1%} to {best.high:.1%})."
    )
    close = [row.model for row in others if row.high >= best.low]
    return f"{found} Not shown to be worse: {', '.join(close)}." if close else found


PROBE_COLUMNS = ("model", "accuracy", "interval", "time", "parameters", "images/s")
"""Headings of `probe_cells`; the last one is of prediction."""


def probe_cells(row: ProbeRow, metric: str) -> tuple[str, ...]:
    """Return a row's values for people, in the order of PROBE_COLUMNS; another metric stands below the accuracy."""
    other = [] if metric == "accuracy" else [f"{NAMES[metric]} {format_metric(metric, row.metrics[metric])}"]
    nothing = ["learnt nothing"] if row.nothing_learnt else []
    speed = row.predict_images_per_s
    return (
        f"{row.model}{' *' if row.hopeless else ''}",
        "\n".join([f"{row.metrics['accuracy']:.2%}", *other, *nothing]),
        f"{100 * row.low:.1f} to {100 * row.high:.1f} %",
        format_duration(row.seconds),
        f"{row.parameters / 1e6:.1f} M",
        f"{speed:,.0f}" if speed >= 100 else format_value(speed),
    )


HOPELESS_NOTE = "* too far behind to be worth fine-tuning"


def plan_first_trials(record: Record) -> list[Plan]:
    """Plan the trials that precede the sampler's own: the baseline, or all fixed trials, and then first proposals."""
    design, seed = record.manifest.design, record.manifest.seed
    recipes = [*design.recipes]
    if design.space and record.space:
        models = record.space.models  # those that the probes left, the best first
        recipes += first_proposals(
            design.space, models, design.portfolio, without=design.recipes[0], proposals=design.proposals
        )
    return [Plan(None, design.stage, recipe, seed) for recipe in recipes]


def first_proposals(
    space: SearchSpace,
    models: Sequence[str],
    portfolio: Iterable[Mapping[str, Any]],
    *,
    without: Recipe,
    proposals: Iterable[Proposal] = (),
) -> list[Recipe]:
    """Return recipes of earlier studies, and then those of the portfolio, that lie in a search space.

    The portfolio's recipes are tried with every model, the best model first. One applies if each of its fields has a
    value of the space; searched fields that it does not name have the value of the space's base, which must be in their
    domain.

    Args:
        space: space with its budget, of whose trials they take at most a third.
        models: models to propose, the best first.
        portfolio: values of some fields of each recipe.
        without: recipe that is not proposed, since it is a trial already.
        proposals: recipes of earlier studies.
    """
    found: list[Recipe] = []
    for proposal in proposals:
        recipe = space.recipe(proposal.values)
        if recipe.model in models and space.contains(recipe) and recipe not in [without, *found]:
            found.append(recipe)
    for values in portfolio:
        for model in models:
            recipe = replace(space.recipe({"model": model}), **values)
            if space.contains(recipe) and recipe not in [without, *found]:
                found.append(recipe)
    return found[: (space.budget.trials - 1) // PORTFOLIO_SHARE]
