"""Find refits of the baseline that an earlier study has run already, and copy their results into a study's record.

A refit is a function of images, weights, recipe, seed, software and arithmetic. If all of these are the same, running
it again gives the same result, only later. Runs nothing and opens no test images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from study.config.recipe import Recipe
from study.dispatch.searcher import Listener
from study.errors import StudyError
from study.results.ledger import other_studies
from study.results.record import Record
from study.results.trial_record import TrialRecord

SAME = ("data_fingerprint", "split_fingerprint", "versions")
"""What must be the same in both manifests, besides the digest of the model's weights."""
ARITHMETIC = ("arithmetic", "gradients", "precision", "threads")
"""Facts of a trial's process on which the last bits of its results depend."""


def reuse_refits(record: Record, baseline: Recipe, listeners: Sequence[Listener]) -> None:
    """Complete the baseline's waiting refits for which an earlier study in the same directory has the result.

    The first seed's refit is never reused: its weights may have to be kept, and only the study that trained it has
    them. Nothing is reused unless all trials of this study ran with the same arithmetic.
    """
    finals = record.finals()
    waiting = [
        trial
        for trial in finals
        if trial.state == "waiting" and trial.plan.recipe == baseline and trial.plan.seed != finals[0].plan.seed
    ]
    kinds = {_arithmetic(trial) for trial in record.all_trials() if trial.facts}
    if not waiting or len(kinds) != 1:
        return
    for study, donor in _donors(record, baseline):
        for trial in waiting:
            same = donor.plan.seed == trial.plan.seed and {_arithmetic(donor)} == kinds
            if same and not record.has_ended(trial.plan):
                record.adopt(trial.plan, donor, study)
                for listener in listeners:
                    listener.on_start(trial.plan)
                    listener.on_change(trial.plan)


def _donors(record: Record, baseline: Recipe) -> Iterator[tuple[str, TrialRecord]]:
    """Yield the complete refits of a recipe by other studies of the same images, software and weights, with names."""
    ours, model = record.manifest, baseline.model
    for other in other_studies(record):
        theirs = other.manifest
        if ours.weights_digests.get(model) != theirs.weights_digests.get(model):
            continue
        if any(getattr(ours, name) != getattr(theirs, name) for name in SAME):
            continue
        try:
            finals = Record.read(other.directory).finals()
        except StudyError:  # damaged
            continue
        for trial in finals:
            if trial.state == "complete" and trial.test and trial.plan.recipe == baseline:
                yield trial.reused_from or other.directory.name, trial


def _arithmetic(trial: TrialRecord) -> tuple[Any, ...]:
    return tuple(trial.facts.get(name) for name in ARITHMETIC)
