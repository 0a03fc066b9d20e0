"""Count how often test images were opened, over all studies of an `mlruns/` directory.

The studies' journals are the ledger: a second file could disagree with them. Reading them takes milliseconds, because
only the few lines that matter are parsed. Knows no statistics.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.config.manifest import Manifest
from study.errors import StudyError
from study.results.record import Record


@dataclass(frozen=True)
class Looks:
    """Openings of a study's test images, by that study and by the others in its `mlruns/` directory."""

    own: int
    """Openings by the study's own trials; a trial that had to start anew may have opened them twice."""
    others: int
    """Openings by trials of other studies."""
    studies: int
    """Number of other studies that opened them."""

    def __str__(self) -> str:
        """Return the counts as text for people."""
        others = "and by no other"
        if self.studies:
            others = f"and {self.others}× by {self.studies} other{'' if self.studies == 1 else 's'}"
        return f"opened {self.own}× by this study {others} in this mlruns directory"


@dataclass(frozen=True)
class OtherStudy:
    """What its journal says, at a glance, about another study."""

    directory: Path
    manifest: Manifest
    opened: int
    """Openings of the test images."""
    verdict: Mapping[str, Any] | None
    """The verdict as it was noted; None if there is none."""


def count_looks(record: Record) -> Looks:
    """Count the openings of a study's test images until now."""
    others = [other.opened for other in other_studies(record) if other.opened]
    return Looks(sum(trial.tests_opened for trial in record.all_trials()), sum(others), len(others))


def earlier_p_values(record: Record) -> list[float]:
    """Return the p-values of the verdicts on a study's test images that were reached before the study's own began.

    They are read once and noted in the study's record, so that a resumed study corrects for the same verdicts. A
    verdict of version 0.1.0 has no p-value and counts as 1, which is the cautious side.
    """
    if record.noted("earlier_p_values") is None:
        reached = [other.verdict["comparison"] for other in other_studies(record) if other.verdict]
        values = [comparison["difference"].get("p") for comparison in reached if comparison]
        record.note("earlier_p_values", [1.0 if value is None else value for value in values])
    return list(record.noted("earlier_p_values"))


def other_studies(record: Record) -> Iterator[OtherStudy]:
    """Yield the other studies that have the same test images."""
    for journal in sorted(record.directory.parent.glob("[!.]*/journal.log")):
        if journal.parent != record.directory and (other := glance(journal)) and _same_test(other, record):
            yield other


def _same_test(other: OtherStudy, record: Record) -> bool:
    """Return whether two studies have the same test images; of one folder, also if they are stored at another size.

    The seed matters only where test images are drawn.
    """
    ours, theirs = record.manifest, other.manifest
    if ours.data_fingerprint == theirs.data_fingerprint:
        return True
    if ours.test_fingerprint is not None and ours.test_fingerprint == theirs.test_fingerprint:
        return True
    given = ["source", "fraction", "classes", "test_images"]
    if any(study.fraction < 1 or study.found.test_fraction is not None for study in (ours, theirs)):
        given.append("seed")
    return all(getattr(ours, name) == getattr(theirs, name) for name in given)


def glance(journal: Path) -> OtherStudy | None:
    """Read a study's manifest, verdict and openings from its journal; None if there is no readable study."""
    manifest = verdict = None
    opened = 0
    try:
        for line in journal.read_bytes().split(b"\n"):
            if b'"test_opened/' in line:
                opened += 1
            elif b'"user_attr":{"manifest":' in line:
                manifest = Manifest.from_dict(json.loads(line)["user_attr"]["manifest"])
            elif b'"user_attr":{"verdict":' in line:
                verdict = json.loads(line)["user_attr"]["verdict"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StudyError):  # damaged, or a later version's
        return None
    return None if manifest is None else OtherStudy(journal.parent, manifest, opened, verdict)
