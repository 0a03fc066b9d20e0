"""Build the part of a report that compares several studies. Only trials tested on the same images are ranked."""

from collections.abc import Sequence

from study.report.elements import Section, Summary, Table, View
from study.report.summary import answer, draw_accuracies, tiles_of
from study.report.trial_sections import (
    RESULT_COLUMNS,
    draw_losses,
    hardest_pair_of,
    is_helped,
    result_row,
    tested_trials,
    warn_of_nothing,
)
from study.results.metrics import largest_class
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.trial_table import compare, faster


def compare_studies(records: Sequence[Record]) -> View:
    """Return the comparison of several studies: one group of sections for each set of images."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if tested_trials(record):
            groups.setdefault((record.manifest.data_fingerprint, *record.manifest.classes), []).append(record)
    sentences, sections = [], []
    for group in groups.values():
        sentences.append(_best_of(group))
        sections += _compare_group(group)
    if len(groups) > 1:
        sentences.append(
            "The studies used different images, or stored the same ones differently, so trials are ranked within each"
            " set of stored images only."
        )
    found = " ".join(sentences) or "No trial was tested."
    return View("Comparison of studies", found, sections, _summarise(records, [*groups.values()], found))


def _summarise(records: Sequence[Record], groups: Sequence[Sequence[Record]], found: str) -> Summary:
    """Return the first screen: the best model first, and what each study found by itself."""
    facts = [(record.name, answer(record)) for record in records]
    question = f"How do the studies {', '.join(record.name for record in records)} compare?"
    if len(groups) != 1:  # nothing, or other images in each group: no accuracy stands for all
        headline = "The studies stored different images" if groups else "No trial was tested"
        return Summary("Comparison of studies", question, headline, found, facts=facts)
    tested = [(record, trial) for record in groups[0] for trial in tested_trials(record)]
    tested.sort(key=lambda pair: -pair[1].metrics["accuracy"])
    named = [(f"{trial.plan.short_title} of {record.name}", trial) for record, trial in tested]
    record, best = tested[0]
    leads = f"{best.plan.recipe.model} of {record.name} has the highest test accuracy"
    return Summary(
        name="Comparison of studies",
        question=question,
        headline=f"{leads}: {best.metrics['accuracy']:.2%}",
        text=found,
        tiles=tiles_of(named),
        drawing=draw_accuracies(named),
        facts=facts,
    )


def _best_of(records: Sequence[Record]) -> str:
    """Return a sentence on the tested trial with the highest accuracy, and a sentence on the fastest model."""
    tested = [(record, trial) for record in records for trial in tested_trials(record)]
    record, best = max(tested, key=lambda pair: pair[1].test.accuracy if pair[1].test else 0.0)
    assert best.test
    manifest = record.manifest
    guess = f"The largest class has {largest_class(best.test.confusion)[1]:.2%} of them."
    warning = warn_of_nothing([best], manifest)
    return (
        f"On {manifest.data}, the highest test accuracy is {best.test.accuracy:.2%} of {manifest.test_images:,}"
        f" images, by {manifest.design.title(best.plan)} of {record.name} (tested trials: {len(tested)}). {guess}"
        f" {f'{warning} ' if warning else ''}{_fastest(tested)}"
    ).strip()


def _fastest(tested: Sequence[tuple[Record, TrialRecord]]) -> str:
    """Rank the models' training speeds, without trials that read from the feature store; empty without two models."""
    fresh = [(record, trial) for record, trial in tested if not is_helped(trial)]
    rows = [row for record, trial in fresh for row in compare([trial], record.manifest.classes)]
    devices = dict.fromkeys(f"{trial.facts.get('device')}, {trial.facts.get('precision')}" for _, trial in fresh)
    text = faster(rows) or ""
    return f"{text} The trials ran on different devices: {'; '.join(devices)}." if text and len(devices) > 1 else text


def _compare_group(records: Sequence[Record]) -> list[Section]:
    """Return the accuracy table, the most confused classes and the loss curves of studies with the same images."""
    manifest = records[0].manifest
    tested = {
        f"{record.name} {record.manifest.design.title(trial.plan)}": trial
        for record in records
        for trial in tested_trials(record)
    }
    rows = [(record.name, *result_row(trial, manifest)) for record in records for trial in tested_trials(record)]
    place = f"{manifest.data}, {manifest.test_images:,} test images"
    _, hardest = hardest_pair_of([*tested.values()], manifest)
    curves, different = draw_losses(tested)
    return [
        Section(
            f"Test accuracy: {place}",
            f"All trials were tested on the same images (data fingerprint {manifest.data_fingerprint}).",
            [Table(("study", *RESULT_COLUMNS), rows, sortable=True)],
        ),
        Section(f"Most confused classes: {place}", hardest),
        Section(f"Training loss: {place}", different, charts=[curves]),
    ]
