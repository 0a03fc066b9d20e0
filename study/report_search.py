"""What a report says of a search: its verdict, and what the search itself shows of what helps, by Optuna's plots."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna

from study.record import Record
from study.report_page import Picture, Section, Table, draw_picture
from study.verdict import details, recall_verdict, sentence

MOST_PLOTTED = 500
"""Trials in Optuna's plots: what it draws beyond is a blot."""
SLICES = 3
"""Fields side by side in one picture of slices: with more the page's width leaves none enough."""


def search_sections(record: Record) -> list[Section]:
    """The verdict's figures, and what the search itself shows of what helps."""
    trials = record.trials()
    scored = [trial for trial in trials if trial.state == "complete"]
    verdict = recall_verdict(record)
    sections = []
    if verdict:
        rows = [tuple(line) for line in details(verdict)]
        sections.append(Section("The verdict", sentence(verdict), [Table(("", ""), rows)]))
    importances = record.noted("importances") or {}
    shares = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in importances.items())
    by_depth = {}
    for trial in sorted(scored, key=lambda trial: trial.value or 0.0):
        by_depth[trial.plan.recipe.unfreeze_depth] = trial
    best = Table(
        ("unfreeze depth", "best trial", "validation accuracy"),
        [(str(depth), trial.plan.title, f"{trial.value:.2%}") for depth, trial in sorted(by_depth.items())],
        caption="The best recipe by unfreeze depth, on the validation images",
    )
    text = f"Of the differences in validation accuracy between complete trials: {shares}." if shares else ""
    pictures = []
    if len(trials) > MOST_PLOTTED:
        text += f" Beyond {MOST_PLOTTED} trials the search's plots would be blots, so there are none."
    elif len(scored) > 1:
        pictures = _plots(record.optuna_study, list(record.space.domains) if record.space else [])
    sections.append(Section("What helps, by the search itself", text.strip(), [best] if by_depth else [], pictures))
    return sections


def _plots(study: optuna.Study, fields: Sequence[str]) -> list[Picture]:
    """Draw Optuna's own plots, the slices so many fields at a time that they can be read."""
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
        some = list(fields[start : start + SLICES])
        title = f"slices along {', '.join(some).replace('_', ' ')}"
        plot = partial(draw.plot_slice, study, some, target_name=name)
        pictures.append(_plot(title, 1.5 + 2.8 * len(some), plot, "constrained" if len(some) > 1 else "tight"))
    return pictures


def _plot(title: str, width: float, plot: Callable[[], Any], layout: Literal["constrained", "tight"]) -> Picture:
    """Draw one of Optuna's own plots, which come as axes or arrays of them, `width` inches wide.

    A colour bar beside several axes keeps off them in the constrained layout alone, one beside a single axes in the
    tight one, as do parallel coordinates.
    """
    # Optuna styles the whole process, in which MLflow's thread may be drawing: so only for as long as it must be.
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter("ignore")
        figure = np.ravel(plot())[0].figure
    plt.close(figure)
    figure.set_size_inches(width, 4.2)
    figure.set_facecolor("white")
    figure.set_layout_engine(layout)
    return draw_picture(title, figure)
