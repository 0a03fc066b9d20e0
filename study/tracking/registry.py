"""Register classifiers in MLflow's model registry, choose the champion among their versions, and download them.

The registered model is torch's exported graph (pt2), so serving it unpickles nothing and needs no code of `study`.
`study` itself reads only the weights and the model card beside the graph. Knows no record: `log_model` needs a saved
classifier, and a client from `tracking.connect`.
"""

import hashlib
import json
import re
import shutil
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from study.errors import ConfigError, TrackingError, first_line, unknown_name
from study.files import scratch_directory
from study.models.saved_model import CARD_FILE, WEIGHTS_FILE, ModelCard, Predictor, SavedModel
from study.results.metrics import NAMES, format_metric, largest_class, score
from study.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""Alias of the best version so far."""
FINGERPRINT, ACCURACY = "study.test_fingerprint", "study.test_accuracy"
"""Tags by which the versions of a model are compared, if accuracy decided both studies."""
CLASSES, SOURCE, IMAGES = "study.classes", "study.source", "study.data_fingerprint"
"""Tags that identify a version's data set: digests of the class names, of the images' place and of the images. A tag
that a version lacks, as those of 0.1.0 lack all, counts as equal."""
METRIC, VALUE = "study.metric", "study.test_value"
"""Tags of the metric that decided a version's study, and of its value; versions that lack them mean accuracy."""
LEARNT_NOTHING = "study.learnt_nothing"
"""Tag that says why a version has learnt nothing, on those that have."""
SMALL_FILES = 2**24
"""Bytes that the files of a model need at most, besides its weights in two formats."""
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class Registration:
    """The result of registering a model."""

    name: str
    version: str
    champion: bool
    """Whether this version is now the champion."""
    note: str
    """Reason why this version is or is not the champion, for the user."""


class _Served(nn.Module):
    """Map images in the usual layout, (n, height, width, 3) uint8, to probabilities (n, classes) float32."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.predictor(images.permute(0, 3, 1, 2))
        return probabilities


def registered_name(card: ModelCard) -> str:
    """Return `<data>-<model>`, with hyphens for characters that a name in the registry may not have.

    A digest of the data set's name takes the place of what the hyphens hide, so that names stay different.
    """
    data = unicodedata.normalize("NFC", card.data)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", data).strip("-")
    if plain != data:
        plain = f"{plain}-{hashlib.sha256(data.encode(errors='surrogateescape')).hexdigest()[:8]}".strip("-")
    return f"{plain}-{card.recipe.model.replace('/', '-')}"


def log_model(client: "MlflowClient", run_id: str, saved: SavedModel, example: NDArray[np.uint8]) -> Registration:
    """Log a classifier as a model of a run, register it, and make it the champion if it beats the present champion.

    It beats the champion if the same metric decided both studies, both were tested on the same images, and its metric
    is better. One that has learnt nothing never becomes champion. A classifier that is already registered is not
    registered again.

    Args:
        client: MLflow client from `connect`.
        run_id: id of the run that trained the classifier.
        saved: classifier, on the CPU.
        example: images (n, 3, height, width) uint8, at least two, of the stored size; they trace the graph and become
            the model's input example.

    Raises:
        TrackingError: MLflow cannot be reached, or refuses the model.
    """
    name = registered_name(saved.card)
    try:
        name = _distinct_name(client, name, saved.card)
        _create_name(client, name, f"{saved.card.recipe.model} for {saved.card.data}")
        versions = client.search_model_versions(f"name = '{name}'")
        tags = _identity(saved.card)
        mine = next((known for known in versions if tags.items() <= known.tags.items()), None)
        if mine is None:
            mine = _register(client, name, run_id, saved, example)
        holder = client.get_registered_model(name).aliases.get(CHAMPION)
        champion = next((known for known in [*versions, mine] if str(known.version) == str(holder)), None)
        wins, note = _judge(mine, champion)
        if wins:
            client.set_registered_model_alias(name, CHAMPION, str(mine.version))
    except Exception as error:  # requests, SQLAlchemy, torch.export and MLflow have no common base class
        raise TrackingError(f"{name}: must be registered with MLflow, but got: {first_line(error)}") from error
    return Registration(name, str(mine.version), wins, note)


def download_model(reference: str, uri: str, directory: Path) -> None:
    """Download only the weights and the card of a registered model into `directory`.

    Args:
        reference: `models:/<name>@<alias>` or `models:/<name>/<version>`.
        uri: URI of MLflow's store, which must exist.
        directory: destination, which must exist.

    Raises:
        ConfigError: the reference has another form, or the registry has no such model.
        TrackingError: the store does not answer, or the model was not made by `log_model`.
    """
    parts = REFERENCE.fullmatch(reference)
    if parts is None:
        raise ConfigError(f"--model: must be models:/NAME@ALIAS or models:/NAME/VERSION, but got {reference!r}.")
    client = connect(uri, verbose=False)
    try:
        version = _find_version(client, parts["name"], parts["alias"], parts["version"])
        from mlflow.artifacts import download_artifacts

        location = client.get_model_version_download_uri(parts["name"], version)
        for file in (WEIGHTS_FILE, CARD_FILE):
            download_artifacts(artifact_uri=f"{location}/{file}", dst_path=str(directory), tracking_uri=uri)
    except ConfigError:
        raise
    except Exception as error:  # any error, as in `log_model`
        files = f"{WEIGHTS_FILE} and {CARD_FILE}"
        raise TrackingError(
            f"{reference}: must hold {files}, like every model of a study, but got: {first_line(error)}"
        ) from error


def _find_version(client: "MlflowClient", name: str, alias: str | None, version: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = [model.name for model in client.search_registered_models()]
        raise ConfigError(f"--model: {unknown_name('registered model', name, known)}") from None
    if alias:
        if alias not in aliases:
            raise ConfigError(f"--model: {unknown_name('alias', alias, aliases)}")
        return str(aliases[alias])
    versions = [str(entry.version) for entry in client.search_model_versions(f"name = '{name}'")]
    if version not in versions:
        raise ConfigError(f"--model: {unknown_name('version', str(version), versions)}")
    return version


def _judge(mine: "ModelVersion", champion: "ModelVersion | None") -> tuple[bool, str]:
    """Decide whether a version is the champion from now on, and return the reason."""
    if champion and champion.version == mine.version:
        return True, "already the champion"
    if LEARNT_NOTHING in mine.tags:
        return False, f"not champion: it has learnt nothing, since {mine.tags[LEARNT_NOTHING]}"
    if champion is None:
        return True, "first champion of this name"
    before = f"version {champion.version}"
    if champion.tags.get(FINGERPRINT) != mine.tags[FINGERPRINT]:
        return False, f"{before} stays champion: it was tested on other images, so the two cannot be compared"
    theirs, metric = (version.tags.get(METRIC, "accuracy") for version in (champion, mine))
    if theirs != metric:
        return False, f"{before} stays champion: {NAMES.get(theirs, theirs)} decided its study, not {NAMES[metric]}"
    held, reached = (float(version.tags.get(VALUE, version.tags[ACCURACY])) for version in (champion, mine))
    shown = [format_metric(metric, value) for value in (reached, held)]
    both = f"test {NAMES[metric]} {' against '.join(shown)} on the same images"
    if score(metric, reached) > score(metric, held):
        return True, f"beats {before}: {both}"
    return False, f"{before} stays champion: {both}"


def _register(
    client: "MlflowClient", name: str, run_id: str, saved: SavedModel, example: NDArray[np.uint8]
) -> "ModelVersion":
    """Log the model and create a version of the registered model from it."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    tags = _tags(saved.card)
    params = {key: str(value) for key, value in saved.card.recipe.to_dict().items()}
    experiment = client.get_run(run_id).info.experiment_id
    for left in client.search_logged_models([experiment], f"tags.`study.uid` = '{saved.card.uid}'"):
        client.delete_logged_model(left.model_id)  # left by a session that died before it created a version
    plain = name.replace(".", "-")  # MLflow allows dots in the names of registered models only
    logged = client.create_logged_model(experiment, plain, run_id, tags, params, "image-classifier")
    status = LoggedModelStatus.FAILED
    try:
        with scratch_directory() as folder:
            _check_room(folder, 2 * (saved.directory / WEIGHTS_FILE).stat().st_size + SMALL_FILES)
            directory = folder / "model"
            _write(directory, saved, example, logged.model_id, run_id)
            client.log_model_artifacts(logged.model_id, str(directory))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(logged.model_id, status)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    made = client.create_model_version(  # no models:/… URI: MLflow would look it up in its default store
        name, logged.artifact_location, run_id, tags, description=_describe(saved.card), model_id=logged.model_id
    )
    # A server sets this tag itself. In a local store, the model's page would otherwise not link to its version.
    link = json.dumps([{"name": name, "version": made.version}])
    client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": link})
    return made


def _check_room(folder: Path, needed: int) -> None:
    """Check that a directory's disk has room; torch would end the whole process if it met a full disk.

    Raises:
        OSError: there is less than `needed` bytes.
    """
    if (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(
            f"the temporary directory {folder.parent} must have {needed / 1e6:.0f} MB free, but has {free / 1e6:.0f}."
            " Make room, or set TMPDIR"
        )


def _write(directory: Path, saved: SavedModel, example: NDArray[np.uint8], model_id: str, run_id: str) -> None:
    """Write the model in MLflow's pytorch flavour, with the weights and the card beside it."""
    import mlflow.pytorch
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = np.ascontiguousarray(example.transpose(0, 2, 3, 1))
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.uint8), (-1, *images.shape[1:]))]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, len(saved.card.classes)))]),
    )
    mlflow.pytorch.save_model(
        _Served(saved.predictor).eval(),
        str(directory),
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=signature,
        input_example=images,
        metadata={"classes": saved.card.classes},
        pip_requirements=mlflow.pytorch.get_default_pip_requirements(),
        serialization_format="pt2",
    )
    # A graph runs only on the device on which it was traced. MLflow would choose a GPU if there is one, and fail.
    flavour = Model.load(directory)
    flavour.flavors["python_function"]["config"] = {"device": "cpu"}
    flavour.save(str(directory / "MLmodel"))
    for file in (WEIGHTS_FILE, CARD_FILE):
        shutil.copyfile(saved.directory / file, directory / file)


def _create_name(client: "MlflowClient", name: str, description: str) -> None:
    """Create a registered model, unless there is one; another study may create it at this very moment."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _distinct_name(client: "MlflowClient", name: str, card: ModelCard) -> str:
    """Return the name, or one with a digest if the name belongs to another data set already.

    Data sets of one name are the same if they have the same classes, and the same images or the same place.
    """
    mine = _data_tags(card)
    for digest in (_digest(card.classes), _digest([card.classes, card.source])):
        taken = [version.tags for version in client.search_model_versions(f"name = '{name}'")]
        if not taken or any(_same_data(mine, tags) for tags in taken):
            return name
        name = f"{registered_name(card)}-{digest}"
    return name


def _same_data(mine: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    """Return whether two versions were trained on one data set, as far as their tags say."""
    equal = {tag: theirs.get(tag, mine[tag]) == mine[tag] for tag in mine}
    return equal[CLASSES] and (equal[SOURCE] or equal[IMAGES])


def _data_tags(card: ModelCard) -> dict[str, str]:
    return {CLASSES: _digest(card.classes), SOURCE: _digest(card.source), IMAGES: card.data_fingerprint}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def _tags(card: ModelCard) -> dict[str, str]:
    tags = _identity(card) | _data_tags(card) | {"study.name": card.study}
    tags |= {METRIC: card.metric, VALUE: repr(card.test_value)}
    return tags | ({LEARNT_NOTHING: card.nothing_learnt} if card.nothing_learnt else {})


def _identity(card: ModelCard) -> dict[str, str]:
    """Return the tags by which a version is known again, also if its study was renamed."""
    return {
        "study.uid": card.uid,
        "study.trial": card.trial,
        FINGERPRINT: card.test_fingerprint,
        ACCURACY: repr(card.test_accuracy),
    }


def _describe(card: ModelCard) -> str:
    width, height = card.stored_size
    nothing = f" It has learnt nothing: {card.nothing_learnt}." if card.nothing_learnt else ""
    return (
        f"Study {card.study}, trial {card.trial}: test accuracy {card.test_accuracy:.2%} on"
        f" {sum(map(sum, card.confusion)):,} images (largest class {largest_class(card.confusion)[1]:.2%}).{nothing}"
        f" Input: images (n, {height}, {width}, 3) uint8."
        f" Output: probabilities of {len(card.classes)} classes. {CARD_FILE} holds the class names and the recipe."
    )
