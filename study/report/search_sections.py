"""Build the report sections of a search: the verdict, hyperparameter importances, best recipes and Optuna's plots."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna

from study.report.elements import Picture, Section, Table, draw_picture
from study.report.trial_sections import warn_of_nothing
from study.results.metrics import MINIMISED, NAMES, format_metric
from study.results.record import Record
from study.verdict.judge import rank
from study.verdict.verdict import stored_verdict
from study.verdict.wording import describe_closeness, details, sentence

MOST_PLOTTED = 500
"""Largest number of trials for which Optuna's plots are readable."""
SLICES = 3
"""Fields per slice plot; with more fields, each one is too narrow to read on the page."""


def search_sections(record: Record) -> list[Section]:
    """Return the section of the verdict, if there is one, and the section of the search results."""
    trials = record.trials()
    scored = [trial for trial in trials if trial.state == "complete"]
    verdict = stored_verdict(record)
    sections = []
    if verdict:
        rows = [tuple(line) for line in details(verdict)]
        sections.append(Section("Verdict", sentence(verdict), [Table(("", ""), rows)]))
    importances = record.noted("importances") or {}
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in importances.items())
    metric = record.manifest.design.metric
    name = f"validation {NAMES[metric]}"
    by_depth = {}
    for trial in sorted(reversed(scored), key=rank):
        by_depth[trial.plan.recipe.unfreeze_depth] = trial
    best = Table(
        ("unfreeze depth", "best trial", name),
        [
            (str(depth), trial.plan.title, format_metric(metric, trial.metrics[metric]))
            for depth, trial in sorted(by_depth.items())
        ],
        caption=f"Best complete trial of each unfreeze depth, by {name}",
    )
    text = f"Share of each field in the variance of {name} (complete trials): {shares}." if shares else ""
    if closeness := describe_closeness(trials, metric):
        text += f" Close: {closeness}."
    if nothing := warn_of_nothing(trials, record.manifest):
        text += f" {nothing}"
    pictures = []
    if len(trials) > MOST_PLOTTED:
        text += f" Plots are not shown, because they are unreadable with more than {MOST_PLOTTED} trials."
    elif len(scored) > 1:
        target = f"minus {name}" if metric in MINIMISED else name
        pictures = _plots(record.optuna_study, list(record.space.domains) if record.space else [], target)
    sections.append(Section("Search results", text.strip(), [best] if by_depth else [], pictures))
    return sections


def _plots(study: optuna.Study, fields: Sequence[str], name: str) -> list[Picture]:
    """Draw Optuna's own plots of the score `name`, with at most SLICES fields per slice plot."""
    draw = optuna.visualization.matplotlib
    pictures = [
        _plot("optimization history", 8, lambda: draw.plot_optimization_history(study, target_name=name), "tight"),
        _plot(
            "parallel coordinates",
            max(8, 1.3 * len(fields)),
            lambda: draw.plot_parallel_coordinate(study, target_name=name),
            "tight",
        ),
    ]
    for start in range(0, len(fields), SLICES):
        group = list(fields[start : start + SLICES])
        title = f"slices along {', '.join(group).replace('_', ' ')}"
        plot = partial(draw.plot_slice, study, group, target_name=name)
        pictures.append(_plot(title, 1.5 + 2.8 * len(group), plot, "constrained" if len(group) > 1 else "tight"))
    return pictures


def _plot(title: str, width: float, plot: Callable[[], Any], layout: Literal["constrained", "tight"]) -> Picture:
    """Draw one of Optuna's own plots.

    Args:
        title: alternative text of the picture.
        width: width in inches.
        plot: function that draws the plot and returns its axes, or an array of its axes.
        layout: "constrained" if there is a colour bar beside several axes, "tight" for a single axes object and for
            parallel coordinates. With the other layout, the colour bar overlaps the axes.
    """
    # Optuna changes matplotlib's style for the whole process, where MLflow's thread may draw too. Restore it at once.
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        figure = np.ravel(plot())[0].figure
    plt.close(figure)
    figure.set_size_inches(width, 4.2)
    figure.set_facecolor("white")
    figure.set_layout_engine(layout)
    return draw_picture(title, figure)
