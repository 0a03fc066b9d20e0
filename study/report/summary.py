"""Summarise a study for the first screen of its report: the question, the answer, its figures, warnings and time.

Computes no statistics.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from statistics import fmean

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from study.charts.intervals import Interval, draw_intervals
from study.formatting import format_bounds, format_duration
from study.report.copies import doubts
from study.report.elements import Recall, Summary, Tile
from study.results.ledger import count_looks
from study.results.metrics import MINIMISED, NAMES, count_images, count_right, format_metric
from study.results.record import SPENT, Record
from study.results.trial_record import TrialRecord
from study.verdict.rerank import find_winner
from study.verdict.screen import probe_rows, probe_sentence
from study.verdict.statistics import accuracy_interval
from study.verdict.trial_table import compare, faster
from study.verdict.verdict import Comparison, Side, Verdict, count_seeds, stored_verdict
from study.verdict.wording import sentence

MOST_TILES = 4
"""Trials whose accuracy is written large."""
MOST_CLASSES = 10
"""Classes whose recall the first screen shows: those that the best recipe finds worst."""
MOST_INTERVALS = 6
"""Intervals that are drawn, the best trial's first."""


def summarise(record: Record) -> Summary:
    """Return the first screen of a study's report."""
    if record.manifest.design.stage == "probe":
        return _summarise_probes(record)
    return _summarise_search(record) if record.space else _summarise_fixed(record)


def answer(record: Record) -> str:
    """Return the main result of a study, in a sentence or two."""
    if record.space:
        verdict = stored_verdict(record)
        nothing_to_judge = record.noted("importances") is not None and find_winner(record) is None
        return sentence(verdict) if verdict or nothing_to_judge else "No verdict yet: the study has not finished."
    if record.manifest.design.stage == "probe":
        return probe_sentence(probe_rows(record), record.manifest.design.metric)
    rows = compare(record.trials(), record.manifest.classes)
    if not rows:
        return "No trial was tested."
    best = max(rows, key=lambda row: row.test_accuracy)
    ranked = [best, *(row for row in rows if row is not best)]
    accuracies = ", ".join(f"{row.model} {row.test_accuracy:.2%}" for row in ranked)
    guess = f"The largest class has {best.largest_share:.2%} of the test images."
    nothing = [f"{row.model} has learnt nothing: {row.nothing_learnt}." for row in ranked if row.nothing_learnt]
    return " ".join([f"Test accuracy: {accuracies}.", guess, *nothing, faster(rows) or ""]).strip()


def rank_tested(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the tested trials, the most accurate first."""
    return sorted((trial for trial in trials if trial.test), key=lambda trial: -trial.metrics["accuracy"])


def draw_accuracies(named: Sequence[tuple[str, TrialRecord]]) -> Markup | None:
    """Draw Wilson's interval of the first MOST_INTERVALS tested trials; None without any."""
    rows = []
    for index, (name, trial) in enumerate(named[:MOST_INTERVALS]):
        low, value, high = _wilson(trial)
        colour = "var(--after)" if index == 0 else "var(--before)"
        rows.append(Interval(name, value, low, high, f"{value:.2f}% ({low:.1f} to {high:.1f})", colour))
    label = "test accuracy (%), with its 95 % interval for new test images"
    return draw_intervals(rows, label) if rows else None


def tiles_of(named: Sequence[tuple[str, TrialRecord]]) -> list[Tile]:
    """Return the accuracies of the first MOST_TILES tested trials, the best of them marked."""
    tiles = []
    for index, (name, trial) in enumerate(named[:MOST_TILES]):
        low, value, high = _wilson(trial)
        note = f"95 % interval {low:.1f} to {high:.1f}"
        tiles.append(Tile(name, f"{value:.2f}%", note, "before" if index else "after"))
    return tiles


def _wilson(trial: TrialRecord) -> tuple[float, float, float]:
    """Return the lower end, the test accuracy and the upper end, in percent."""
    assert trial.test
    right, images = count_right(trial.test.confusion), count_images(trial.test.confusion)
    low, high = accuracy_interval(right, images)
    return 100 * low, 100 * right / images, 100 * high


def _summarise_probes(record: Record) -> Summary:
    manifest = record.manifest
    question = f"Which pretrained model has the most useful features for {manifest.data}?"
    rows = probe_rows(record)
    drawn = [
        Interval(
            row.model.rpartition("/")[2],  # the end tells models apart
            100 * row.metrics["accuracy"],
            100 * row.low,
            100 * row.high,
            f"{row.metrics['accuracy']:.2%} ({100 * row.low:.1f} to {100 * row.high:.1f})",
            "var(--before)" if index else "var(--after)",
        )
        for index, row in enumerate(rows)
    ]
    label = "validation accuracy of a linear probe (%), with its 95 % interval for new images"
    nothing = "No probe has learnt anything" if rows and rows[0].nothing_learnt else ""
    return Summary(
        record.name,
        question,
        nothing or (f"Most useful features: {rows[0].model}" if rows else ""),
        answer(record),
        drawing=draw_intervals(drawn, label) if drawn else None,
        warnings=_warnings(record, None),
        facts=_facts(record),
    )


def _summarise_fixed(record: Record) -> Summary:
    manifest = record.manifest
    models = " and ".join(manifest.design.models)
    written = ", as the assignment wrote it" if manifest.design.stage == "as-written" else ""
    question = f"How accurately does {models} classify {manifest.data}{written}?"
    if len(manifest.design.models) > 1:
        question = question.replace("does", "do", 1)
    ranked = rank_tested(record.trials())
    text = answer(record)
    if not ranked:
        return Summary(record.name, question, text, "", warnings=_warnings(record, None), facts=_facts(record))
    named = [(trial.plan.short_title, trial) for trial in ranked]
    model, reached = ranked[0].plan.recipe.model, f"{ranked[0].metrics['accuracy']:.2%}"
    headline = f"Test accuracy of {model}: {reached}"
    if len(ranked) > 1:
        headline = f"{model} reaches the highest test accuracy: {reached}"
    sides = ranked[:2][::-1]
    return Summary(
        name=record.name,
        question=question,
        headline=headline,
        text=text,
        tiles=tiles_of(named),
        drawing=draw_accuracies(named),
        recalls=_recalls([np.asarray(trial.confusion) for trial in sides], [1] * len(sides), manifest.classes),
        recall_title=_recall_title(len(manifest.classes)),
        sides=[trial.plan.short_title for trial in sides],
        warnings=_warnings(record, None),
        facts=_facts(record),
    )


def _summarise_search(record: Record) -> Summary:
    manifest, space, verdict = record.manifest, record.space, stored_verdict(record)
    assert space
    metric = NAMES[manifest.design.metric]
    fields = ", ".join(name.replace("_", " ") for name in space.domains)
    question = (
        f"Is any recipe of the search space {space.name} ({fields}) better than the baseline on {manifest.data},"
        f" by its test {metric}?"
    )
    headline, _, text = answer(record).partition(": ")
    comparison = verdict.comparison if verdict else None
    sides = [side for side in (verdict and verdict.baseline, comparison and comparison.winner) if side]
    return Summary(
        name=record.name,
        question=question,
        headline=headline.rstrip("."),
        text=text[:1].upper() + text[1:],
        tiles=_search_tiles(record, verdict, sides),
        drawing=_draw_gain(verdict, comparison) if verdict and comparison else None,
        recalls=_recalls(
            [np.asarray(side.confusion) for side in sides], [len(side.accuracies) for side in sides], manifest.classes
        ),
        recall_title=_recall_title(len(manifest.classes)),
        sides=["baseline", "best recipe"][: len(sides)],
        warnings=_warnings(record, verdict),
        facts=_facts(record),
    )


def _search_tiles(record: Record, verdict: Verdict | None, sides: Sequence[Side]) -> list[Tile]:
    """Return the test metric of both recipes and the gain; before the verdict, the best validation so far."""
    metric = record.manifest.design.metric
    if not verdict or not sides:
        best = find_winner(record)
        if best is None or not best.metrics:
            return []
        note = f"{best.plan.short_title}, validation images"
        return [Tile(f"best validation {NAMES[metric]} so far", format_metric(metric, best.metrics[metric]), note)]
    tiles = []
    for name, side in zip(("baseline", "best recipe"), sides, strict=False):
        value = format_metric(metric, fmean(side.values) if side.values else side.mean)
        seeds = count_seeds(len(side.accuracies))
        spread = "" if side.std is None else f"± {100 * side.std:.2f} over "
        note = f"accuracy {100 * side.mean:.2f}% {spread}{seeds}" if side.values else f"{spread}{seeds}"
        kind = "before" if name == "baseline" else "after"
        tiles.append(Tile(f"test {NAMES[metric]}, {name}", value, note, kind))
    if verdict.comparison:
        mean, low, high = _gain(verdict, verdict.comparison)
        unit = "" if metric in MINIMISED else " points"
        sign = "" if mean.startswith("-") or mean == "0" else "+"
        tiles.append(Tile("gain", f"{sign}{mean}{unit}", f"95 % interval {low} to {high}", "gain"))
    return tiles


def _gain(verdict: Verdict, comparison: Comparison) -> tuple[str, str, str]:
    """Return the gain and the ends of its interval: percentage points, or a log loss; more is better."""
    difference = comparison.difference
    amounts = difference.mean, difference.low, difference.high
    mean, low, high = format_bounds(*amounts, scale=1 if verdict.metric in MINIMISED else 100)
    return mean, low, high


def _draw_gain(verdict: Verdict, comparison: Comparison) -> Markup:
    scale = 1 if verdict.metric in MINIMISED else 100
    difference = comparison.difference
    mean, low, high = _gain(verdict, comparison)
    value, least, most = (scale * amount for amount in (difference.mean, difference.low, difference.high))
    row = Interval("gain over the baseline", value, least, most, f"{mean} ({low} to {high})")
    unit = "lower log loss is a gain" if verdict.metric in MINIMISED else "percentage points"
    label = f"gain in test {NAMES[verdict.metric]} ({unit}), with its 95 % interval; right of 0 is better"
    return draw_intervals([row], label, zero=True)


def _recalls(confusions: Sequence[NDArray[np.integer]], seeds: Sequence[int], classes: Sequence[str]) -> list[Recall]:
    """Return the recall of the MOST_CLASSES classes that the last side finds worst, the worst first."""
    if not confusions:
        return []
    sums = [confusion.sum(axis=1) for confusion in confusions]
    values = [100 * np.diag(counts) / np.maximum(total, 1) for counts, total in zip(confusions, sums, strict=True)]
    present = np.flatnonzero(sums[-1])
    worst = present[np.argsort(values[-1][present], kind="stable")][:MOST_CLASSES]
    return [
        Recall(classes[place], int(sums[-1][place] // seeds[-1]), [float(side[place]) for side in values])
        for place in worst
    ]


def _recall_title(classes: int) -> str:
    if classes <= MOST_CLASSES:
        return "Recall by class, the lowest first"
    return f"Lowest recall: {MOST_CLASSES} of {classes:,} classes"


def _warnings(record: Record, verdict: Verdict | None) -> list[str]:
    """Return what a reader must know before trusting the answer."""
    told = record.manifest.found.describe(searched=record.space is not None)
    found = [doubts(record), *(f"{name}: {text}" for name, text in told if name in {"cropping", "left out"})]
    trials = record.all_trials()
    failed = [trial.plan.short_title for trial in trials if trial.state == "failed"]
    if failed:
        shown = ", ".join(failed[:5]) + ", …" * (len(failed) > 5)
        found.append(f"{len(failed)} of {len(trials)} trials failed: {shown}.")
    if verdict and verdict.missing:
        found.append(f"The verdict lacks refits: {'; '.join(verdict.missing)}")
    return [text[:1].upper() + text[1:] for text in found if text]


def _facts(record: Record) -> list[tuple[str, str]]:
    """Return the size of data and study, time and devices."""
    manifest, trials = record.manifest, record.all_trials()
    sizes = {"training": manifest.train_images, "validation": manifest.val_images, "test": manifest.test_images}
    images = ", ".join(f"{size:,} {split}" for split, size in sizes.items() if size or split != "validation")
    states = Counter(trial.state for trial in trials)
    devices = dict.fromkeys(
        f"{trial.facts['device']}, {trial.facts['precision']}" for trial in trials if "precision" in trial.facts
    )
    started = min((trial.started_ms for trial in trials if trial.started_ms), default=None)
    time = f"{format_duration(sum(trial.seconds for trial in trials))} of device time"
    if spent := record.noted(SPENT):
        time += f", {format_duration(spent)} in all"
    lines = [
        ("data", f"{manifest.data}: {images} images; {len(manifest.classes):,} classes"),
        ("trials", f"{len(trials)}: {', '.join(f'{count} {state}' for state, count in states.items())}"),
        ("time", time),
        ("device", "; ".join(devices)),
        ("begun", datetime.fromtimestamp(started / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC") if started else ""),
        ("test images", str(count_looks(record))),
    ]
    return [(name, text) for name, text in lines if text]
