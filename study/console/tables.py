"""Build the tables that a study shows while it runs and at its end."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from study.config.manifest import Manifest
from study.config.plan import METRICS
from study.formatting import format_duration
from study.results.metrics import NAMES, format_metric, largest_class
from study.results.trial_record import TrialRecord
from study.verdict.judge import rank
from study.verdict.screen import HOPELESS_NOTE, PROBE_COLUMNS, ProbeRow, probe_cells
from study.verdict.trial_table import Row

BEST = 5
"""Trials in the table of the best."""
SHORTER = {"parameters": "params"}
"""Headings that would take the room of names."""


def best_table(trials: Sequence[TrialRecord], number: int, manifest: Manifest) -> Table:
    """Build the table of the best trials by the study's metric, complete trials first."""
    metric = manifest.design.metric
    scored = [trial for trial in trials if trial.score is not None]
    scored.sort(key=lambda trial: (trial.state == "complete", rank(trial)), reverse=True)
    confusions = [trial.confusion for trial in scored if trial.confusion]
    guess = f" (largest class {largest_class(confusions[0])[1]:.2%})" if confusions else ""
    table = Table(title=f"Best trials by validation {NAMES[metric]}{guess}", title_justify="left")
    table.caption_justify = "left"
    shown = list(dict.fromkeys([metric, "accuracy"]))
    table.add_column("trial", overflow="fold")  # the end of a name tells models apart
    for heading in (*(NAMES[name] for name in shown), "epochs", "state"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for trial in scored[:number]:
        star = ""
        if trial.finished and trial.nothing_learnt(manifest):
            star, table.caption = "*", "* has learnt nothing"
        values = [f"{format_metric(name, trial.metrics[name])}{star}" for name in shown]
        table.add_row(manifest.design.title(trial.plan), *values, str(len(trial.epochs)), trial.state)
    return table


def tally(trials: Sequence[TrialRecord]) -> str:
    """Count the trials of a search by their states, and sum up their device time."""
    counts = Counter(trial.state for trial in trials)
    spent, saved = sum(trial.seconds for trial in trials), sum(trial.saved_s for trial in trials)
    states = ", ".join(f"{counts[state]} {state}" for state in ("complete", "pruned", "failed"))
    return f"{states}; {format_duration(spent)} of device time spent, {format_duration(saved)} saved by pruning"


def baseline_table(rows: Sequence[Row]) -> Table:
    """Build the table of fixed trials: one column per trial, one row per figure."""
    table = Table(title="Trained on all training images, tested once", title_justify="left")
    table.add_column()
    for row in rows:
        table.add_column(row.model, justify="right")
    table.add_row("trainable parameters", *(f"{row.trainable_parameters:,}" for row in rows))
    table.add_row("training time", *(f"{row.seconds:.1f} s" for row in rows))
    table.add_row("images/s", *(f"{row.images_per_s:.1f}" for row in rows))
    for epoch in range(max(len(row.losses) for row in rows)):
        table.add_row(f"loss of epoch {epoch + 1}", *(f"{row.losses[epoch]:.4f}" for row in rows))
    table.add_row("test accuracy", *(f"{row.test_accuracy:.2%}" for row in rows))
    table.add_row("share of largest class", *("–" if (s := row.largest_share) is None else f"{s:.2%}" for row in rows))
    for name in METRICS[1:]:
        values = [row.metrics.get(name) for row in rows]
        table.add_row(f"test {NAMES[name]}", *("–" if v is None else format_metric(name, v) for v in values))
    table.add_row("hardest pair", *(row.hardest_pair for row in rows))
    if any(row.nothing_learnt for row in rows):
        table.add_row("has learnt nothing", *(row.nothing_learnt or "" for row in rows))
    return table


def probe_table(rows: Sequence[ProbeRow], metric: str) -> Table:
    """Build the table of linear probes, the best first; a terminal of 80 columns has room for whole names."""
    table = Table(title="Linear probes, the best first", title_justify="left", pad_edge=False)
    for heading in PROBE_COLUMNS:
        table.add_column(SHORTER.get(heading, heading), overflow="fold")  # the end of a name tells models apart
    for row in rows:
        model, accuracy, interval, *rest = probe_cells(row, metric)
        table.add_row(model.replace("/", "/\n").replace(".", "\n."), accuracy, interval.replace(" to ", "–"), *rest)
    if any(row.hopeless for row in rows):
        table.caption, table.caption_justify = HOPELESS_NOTE, "left"
    return table
