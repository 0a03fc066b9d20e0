"""Save what a study trained, with model cards: a refit of a search's best recipe, or the trials of a baseline.

The choice of the refit never depends on the test images. This module knows neither MLflow nor any use of the model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from study.config.recipe import Recipe
from study.data.images import Dataset
from study.models.classifier import build
from study.models.pretrained import Pretrained
from study.models.saved_model import MODEL_DIRECTORY, MODELS_DIRECTORY, ModelCard, save_model
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.training.run_trial import open_checkpoint
from study.verdict.verdict import Verdict


def recipe_to_keep(record: Record, verdict: Verdict, *, winner: Recipe, baseline: Recipe) -> Recipe:
    """Return the recipe to keep: the winner's if it beats the baseline or the baseline has no complete refit."""
    if verdict.decision == "better" or not _refits(record.finals(), baseline):
        return winner
    return baseline


def keep_model(record: Record, recipe: Recipe, dataset: Dataset, pretrained: Pretrained) -> Path | None:
    """Save the recipe's first complete refit in the study's directory, unless it exists, and return its directory.

    Return None if the study ran no complete refit, or if this machine does not have the refit's last checkpoint.

    Args:
        record: record of a search whose refits have ended.
        recipe: recipe from `recipe_to_keep`.
        dataset: images of the study.
        pretrained: weights that the trials started from.

    Raises:
        RecordError: the classifier cannot be written.
    """
    directory = record.directory / MODEL_DIRECTORY
    if directory.is_dir():
        return directory
    refit = next((refit for refit in _refits(record.finals(), recipe) if not refit.reused_from), None)
    return directory if refit and _save(directory, record, refit, dataset, pretrained) else None


def keep_models(record: Record, dataset: Dataset, pretrained: Mapping[str, Pretrained]) -> None:
    """Save each complete trial of a baseline, unless it is saved or this machine does not have its last checkpoint.

    The assignment's own code leaves no checkpoints, so nothing of it is kept.

    Args:
        record: record of a baseline whose trials have ended.
        dataset: images of the study.
        pretrained: weights that the trials started from, by model.

    Raises:
        RecordError: a classifier cannot be written.
    """
    for trial in unkept(record):
        _save(_directory(record, trial), record, trial, dataset, pretrained[trial.plan.recipe.model])


def unkept(record: Record) -> list[TrialRecord]:
    """Return the trials of a baseline that can be kept, but are not yet: their last checkpoints are here."""
    return [
        trial
        for trial in record.trials()
        if trial.plan.stage == "baseline"
        and trial.state == "complete"
        and not _directory(record, trial).is_dir()
        and (record.checkpoints / trial.plan.checkpoint).is_file()
    ]


def _directory(record: Record, trial: TrialRecord) -> Path:
    return record.directory / MODELS_DIRECTORY / trial.plan.key


def _save(directory: Path, record: Record, trial: TrialRecord, dataset: Dataset, pretrained: Pretrained) -> bool:
    """Save a trial's classifier from its last checkpoint, and return whether this machine has the checkpoint."""
    recipe = trial.plan.recipe
    classifier = build(
        recipe.model,
        classes=len(dataset.classes),
        unfreeze_depth=recipe.unfreeze_depth,
        pretrained=pretrained.state,
        seed=trial.plan.seed,
    )
    checkpoint = open_checkpoint(record.checkpoints, record.manifest.uid, trial.plan)
    if checkpoint.restore(classifier) != recipe.epochs:
        return False
    directory.parent.mkdir(exist_ok=True)
    save_model(directory, classifier, _describe(record, trial, dataset, pretrained))
    return True


def _refits(finals: Sequence[TrialRecord], recipe: Recipe) -> list[TrialRecord]:
    """Return the complete refits of a recipe, by number."""
    return [trial for trial in finals if trial.plan.recipe == recipe and trial.state == "complete" and trial.test]


def _describe(record: Record, refit: TrialRecord, dataset: Dataset, pretrained: Pretrained) -> ModelCard:
    assert refit.test
    manifest = record.manifest
    height, width = dataset.test.pixels.shape[2:]
    copied = (
        "data",
        "source",
        "data_dir",
        "fraction",
        "image_size",
        "data_fingerprint",
        "split_fingerprint",
        "weights",
        "found",
    )
    return ModelCard(
        recipe=refit.plan.recipe,
        seed=refit.plan.seed,
        classes=list(dataset.classes),
        confusion=np.asarray(refit.test.confusion).tolist(),
        test_loss=refit.test.loss,
        metric=manifest.design.metric,
        data_seed=manifest.seed,
        stored_size=[width, height],
        test_fingerprint=dataset.test.fingerprint,
        weights_digest=pretrained.digest,
        study=record.name,
        uid=manifest.uid,
        trial=refit.plan.key,
        versions=dict(manifest.versions),
        **{key: getattr(manifest, key) for key in copied},
        **{key: refit.facts[key] for key in ("precision", "threads", "arithmetic")},
    )
