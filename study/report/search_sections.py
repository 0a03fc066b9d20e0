"""Build the report sections of a search: the verdict, hyperparameter importances, best recipes and plots."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from study.charts.curves import Dot, draw_dots
from study.charts.parallel import Kind, Line, Value, draw_parallel
from study.config.search_space import Categorical, Domain
from study.report.elements import Chart, Section, Table
from study.report.trial_sections import warn_of_nothing
from study.results.metrics import MINIMISED, NAMES, format_metric, score
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.judge import rank
from study.verdict.prior import describe_proposals
from study.verdict.verdict import stored_verdict
from study.verdict.wording import describe_closeness, details

MOST_PLOTTED = 1_000
"""Largest number of trials for which the plots are readable."""


def search_sections(record: Record) -> list[Section]:
    """Return the section of the verdict, if there is one, and the section of the search results."""
    trials = record.trials()
    scored = [trial for trial in trials if trial.state == "complete"]
    verdict = stored_verdict(record)
    sections = []
    if verdict:
        rows = [tuple(line) for line in details(verdict)]
        sections.append(Section("Verdict", "The figures behind the answer.", [Table(("", ""), rows)]))
    importances = record.noted("importances") or {}
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in importances.items())
    design = record.manifest.design
    metric = design.metric
    name = f"validation {NAMES[metric]}"
    by_depth = {}
    for trial in sorted(reversed(scored), key=rank):
        by_depth[trial.plan.recipe.unfreeze_depth] = trial
    best = Table(
        ("unfreeze depth", "best trial", name),
        [
            (str(depth), design.title(trial.plan), format_metric(metric, trial.metrics[metric]))
            for depth, trial in sorted(by_depth.items())
        ],
        caption=f"Best complete trial of each unfreeze depth, by {name}",
    )
    text = f"Share of each field in the variance of {name} (complete trials): {shares}." if shares else ""
    if closeness := describe_closeness(trials, metric):
        text += f" Close: {closeness}."
    if proposals := describe_proposals(record):
        text += f" First proposals: {proposals}."
    if nothing := warn_of_nothing(trials, record.manifest):
        text += f" {nothing}"
    charts = []
    if len(trials) > MOST_PLOTTED:
        text += f" Plots are not shown, because they are unreadable with more than {MOST_PLOTTED} trials."
    elif len(scored) > 1:
        charts = _charts(record, name)
    sections.append(Section("Search results", text.strip(), [best] if by_depth else [], charts=charts))
    return sections


def _charts(record: Record, name: str) -> list[Chart]:
    """Draw the score by trial, all trials over all fields, and the score by each field; hovering marks a trial."""
    assert record.space
    metric, fields = record.manifest.design.metric, record.space.domains
    shown = [trial for trial in record.trials() if trial.metrics]
    scale, label = (1, name) if metric in MINIMISED else (100, f"{name} (%)")
    values = {trial.plan.key: scale * trial.metrics[metric] for trial in shown}
    tips = {trial.plan.key: _tip(trial, record) for trial in shown}

    def dots(x: Callable[[TrialRecord], float]) -> list[Dot]:
        keys = ((trial, trial.plan.key) for trial in shown)
        return [Dot(key, x(trial), values[key], tips[key], trial.state == "complete") for trial, key in keys]

    best = _best_so_far(shown, values, min if metric in MINIMISED else max)
    history = draw_dots(dots(lambda trial: trial.number), "trial", label, best=best)
    charts = [Chart("Score of each trial, and the best so far", history, full=True)]
    if len(fields) > 1:
        ranked = sorted(values, key=lambda key: score(metric, values[key]))
        strengths = {key: place / max(len(ranked) - 1, 1) for place, key in enumerate(ranked)}
        lines = []
        for trial in shown:
            key = trial.plan.key
            by_axis: dict[str, Value] = {field: _value(trial, field) for field in fields}
            by_axis[label] = values[key]
            lines.append(Line(key, by_axis, tips[key], strengths[key]))
        axes = {**{field: _kind(domain) for field, domain in fields.items()}, label: "linear"}
        title = "All fields together: the stronger a line, the better its trial"
        charts.append(Chart(title, draw_parallel(lines, axes), full=True, scrolls=True))
    for field, domain in fields.items():
        if not isinstance(domain, Categorical):
            heading = field.replace("_", " ")
            drawn = draw_dots(dots(partial(_number, field=field)), heading, label, log=domain.log)
            charts.append(Chart(f"Score by {heading}", drawn))
    return charts


def _best_so_far(
    shown: Sequence[TrialRecord], values: Mapping[str, float], better: Callable[[float, float], float]
) -> list[tuple[float, float]]:
    """Return the steps of the best complete trial's score, up to the last trial."""
    best: list[tuple[float, float]] = []
    for trial in shown:
        if trial.state == "complete":
            reached = values[trial.plan.key]
            best.append((float(trial.number), better(best[-1][1], reached) if best else reached))
    return [*best, (float(shown[-1].number), best[-1][1])]


def _tip(trial: TrialRecord, record: Record) -> str:
    design = record.manifest.design
    ended = "" if trial.state == "complete" else f", {trial.state} after epoch {len(trial.epochs)}"
    return f"{design.title(trial.plan)}: {format_metric(design.metric, trial.metrics[design.metric])}{ended}"


def _value(trial: TrialRecord, field: str) -> Value:
    value: Value = getattr(trial.plan.recipe, field)
    return value


def _number(trial: TrialRecord, field: str) -> float:
    return float(_value(trial, field))


def _kind(domain: Domain) -> Kind:
    return "choices" if isinstance(domain, Categorical) else "log" if domain.log else "linear"
