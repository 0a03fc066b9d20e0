"""Draw images beside their copies, and build the report's section on the images of a study."""

from typing import Any

import numpy as np

from study.charts import figures
from study.config.manifest import Manifest
from study.data.audit import Audit
from study.data.images import Dataset
from study.report.elements import Section, Table, embed_picture
from study.results.metrics import count_images, count_right
from study.results.record import Record
from study.results.trial_record import TrialRecord

MAX_PAIRS = 12
"""Groups of copies that are drawn, each by two images."""
MAX_ROWS = 20
"""Groups of copies that are listed."""


def draw_copies(audit: Audit, dataset: Dataset) -> bytes | None:
    """Draw the worst groups of copies, two images of each side by side, as a PNG; None if there are no copies.

    Args:
        audit: audit of `dataset`.
        dataset: all images, before any are dropped.
    """
    pairs = [(group.members[0], group.members[-1]) for group in audit.worst_groups(MAX_PAIRS)]
    if not pairs:
        return None
    splits = [*dataset.splits.values()]
    starts = np.cumsum([0, *map(len, splits)])
    colours, names = [], []
    for position in (position for pair in pairs for position in pair):
        split = int(np.searchsorted(starts, position, side="right")) - 1
        colours.append(splits[split].pixels[position - starts[split]].astype(np.float32) / 255)
        names.append(audit.describe(position))
    title = "Images and their copies, in pairs"
    return figures.png(figures.samples(np.stack(colours), range(len(names)), names, title))


def images_section(record: Record, tested: list[TrialRecord]) -> Section | None:
    """Return the section on the images: their number by class and split, copies, leaks and contradicting labels."""
    audit = record.noted("audit")
    if audit is None:  # the study was begun by version 0.1.0
        return None
    manifest = record.manifest
    tables = [_counts(audit, manifest)]
    if audit["leaked_test"]:
        tables.append(_without_leaks(audit, tested, manifest))
    if audit["groups"]:
        tables.append(_copies(audit))
    pictures = []
    if record.copies.is_file():
        pictures.append(embed_picture("images beside their copies", record.copies.read_bytes()))
    return Section("Images", _text(audit, manifest), tables, pictures)


def doubts(record: Record) -> str:
    """Return what makes the results of a study doubtful, in a sentence or two; "" if nothing does."""
    audit = record.noted("audit")
    doubtful = audit and (audit["leaked_test"] or audit["contradictions"])
    return _text(audit, record.manifest) if doubtful else ""


def _text(audit: dict[str, Any], manifest: Manifest) -> str:
    leaked, wrong, extra = len(audit["leaked_test"]), audit["contradictions"], audit["extra_copies"]
    if not extra:
        return "No image is a copy of another."
    sentences = [f"{extra:,} of the images are copies of others."]
    if leaked:
        handled = "Training used these images too, so the test accuracy is too good."
        if manifest.found.leaks_dropped is not None:
            handled = f"{manifest.found.leaks_dropped:,} copies of them were dropped from training."
        sentences.append(f"{leaked:,} test images have a copy outside the test images. {handled}")
    if wrong:
        sentences.append(f"{wrong:,} images have copies of another class: at least one of the labels is wrong.")
    return " ".join(sentences)


def _counts(audit: dict[str, Any], manifest: Manifest) -> Table:
    splits = list(audit["counts"])
    totals = [sum(audit["counts"][split]) for split in splits]
    rows = [
        (name, *(f"{count:,}" for count in counts), f"{sum(counts) / sum(totals):.1%}")
        for name, *counts in zip(manifest.classes, *audit["counts"].values(), strict=True)
    ]
    caption = "Images by class, as found: before a search holds out validation images, and before copies are dropped"
    return Table(("class", *splits, "share"), rows, caption, sortable=True)


def _without_leaks(audit: dict[str, Any], tested: list[TrialRecord], manifest: Manifest) -> Table:
    leaked = list(zip(audit["leaked_test"], audit["leaked_labels"], strict=True))
    rows = []
    for trial in tested:
        assert trial.test
        images, right = count_images(trial.test.confusion), count_right(trial.test.confusion)
        right_leaked = sum(trial.test.predictions[index] == label for index, label in leaked)
        rest = images - len(leaked)
        without = f"{(right - right_leaked) / rest:.2%}" if rest else "–"
        rows.append((manifest.design.title(trial.plan), f"{trial.test.accuracy:.2%}", without))
    columns = ("trial", "test accuracy", "without test images that have a copy elsewhere")
    return Table(columns, rows)


def _copies(audit: dict[str, Any]) -> Table:
    rows = [
        (
            "; ".join(group["images"]),
            "all pixels" if group["exact"] else "look the same",
            ", ".join(
                word
                for word, holds in (("test and training", group["leak"]), ("several classes", group["contradiction"]))
                if holds
            ),
        )
        for group in audit["groups"][:MAX_ROWS]
    ]
    return Table(("images", "equal", "crosses"), rows, f"Copies, the worst first (at most {MAX_ROWS} groups)")
