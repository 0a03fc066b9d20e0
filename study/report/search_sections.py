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
from study.results.record import Record
from study.results.verdict import stored_verdict
from study.results.wording import details, sentence

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
    by_depth = {}
    for trial in sorted(scored, key=lambda trial: trial.value or 0.0):
        by_depth[trial.plan.recipe.unfreeze_depth] = trial
    best = Table(
        ("unfreeze depth", "best trial", "validation accuracy"),
        [(str(depth), trial.plan.title, f"{trial.value:.2%}") for depth, trial in sorted(by_depth.items())],
        caption="Best complete trial of each unfreeze depth, by validation accuracy",
    )
    text = f"Share of each field in the variance of validation accuracy (complete trials): {shares}." if shares else ""
    pictures = []
    if len(trials) > MOST_PLOTTED:
        text += f" Plots are not shown, because they are unreadable with more than {MOST_PLOTTED} trials."
    elif len(scored) > 1:
        pictures = _plots(record.optuna_study, list(record.space.domains) if record.space else [])
    sections.append(Section("Search results", text.strip(), [best] if by_depth else [], pictures))
    return sections


def _plots(study: optuna.Study, fields: Sequence[str]) -> list[Picture]:
    """Draw Optuna's own plots, with at most SLICES fields per slice plot."""
    draw = optuna.visualization.matplotlib
    name = "validation accuracy"
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
