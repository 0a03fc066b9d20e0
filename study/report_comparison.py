"""Several studies on one page: their tested trials side by side, ranked where they were tested on the same images."""

from collections.abc import Sequence

from study.comparison import compare, faster
from study.record import Record
from study.report_page import Section, Table, View
from study.report_sections import answer
from study.report_tested import RESULT_COLUMNS, draw_curves, hardest_pair_of, is_helped, result_row, tested_trials
from study.trials import TrialRecord


def compare_studies(records: Sequence[Record]) -> View:
    """Return what several studies' tested trials say together: ranked where they were tested on the same images."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        if tested_trials(record):
            groups.setdefault((record.manifest["data_fingerprint"], *record.manifest["classes"]), []).append(record)
    sentences, sections = [], []
    for those in groups.values():
        sentences.append(_best_of(those))
        sections += _compare_group(those)
    if len(groups) > 1:
        sentences.append("The studies were not run on the same images: accuracies are ranked for each set alone.")
    answers = [(record.name, answer(record)) for record in records]
    return View("Side by side", " ".join(sentences) or "No trial was tested.", answers, sections)


def _best_of(records: Sequence[Record]) -> str:
    """Say which of these studies' tested trials is right most often, and which model trains fastest."""
    tested = [(record, trial) for record in records for trial in tested_trials(record)]
    record, best = max(tested, key=lambda pair: pair[1].test.accuracy if pair[1].test else 0.0)
    assert best.test
    told = record.manifest
    return (
        f"On {told['data']}, {best.plan.title} of {record.name} is right about {best.test.accuracy:.2%} of"
        f" {told['test_images']:,} test images, the best of {len(tested)} tested trials. {_fastest(tested)}"
    ).strip()


def _fastest(tested: Sequence[tuple[Record, TrialRecord]]) -> str:
    """Rank the models' speeds, of trials that read nothing from the store; empty where there is nothing to rank."""
    fresh = [(record, trial) for record, trial in tested if not is_helped(trial)]
    rows = [row for record, trial in fresh for row in compare([trial], record.manifest["classes"])]
    devices = dict.fromkeys(f"{trial.facts.get('device')}, {trial.facts.get('precision')}" for _, trial in fresh)
    said = faster(rows) or ""
    return f"{said} They ran on different devices: {'; '.join(devices)}." if said and len(devices) > 1 else said


def _compare_group(records: Sequence[Record]) -> list[Section]:
    """Tables, the hardest pair and curves of studies that were tested on the same images."""
    told = records[0].manifest
    tested = {f"{record.name} {trial.plan.title}": trial for record in records for trial in tested_trials(record)}
    rows = [(record.name, *result_row(trial, told)) for record in records for trial in tested_trials(record)]
    place = f"{told['data']}, {told['test_images']:,} test images"
    _, hardest = hardest_pair_of([*tested.values()], told)
    curves, different = draw_curves(tested)
    return [
        Section(
            f"How right they are: {place}",
            f"All were tested on the same images, {told['data_fingerprint']} by their fingerprint.",
            [Table(("study", *RESULT_COLUMNS), rows, sortable=True)],
        ),
        Section(f"Hardest to tell apart: {place}", hardest),
        Section(f"How they train: {place}", different, pictures=[curves]),
    ]
