"""Save and load a trained classifier as two files: weights in safetensors, and a model card in JSON.

Reading either runs nothing that is in it. Which of a study's classifiers is kept, and for whom, is not known here.
"""

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
from pydantic import AfterValidator, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from study.config.manifest import Found
from study.config.plan import METRICS
from study.config.recipe import Recipe
from study.config.validation import AtLeastOne, Count, Fraction, check_value, checked, from_table, one_of, within
from study.errors import ConfigError, RecordError, unknown_name
from study.files import new_directory
from study.models.classifier import Classifier, build
from study.models.preprocessing import preprocessing
from study.models.pretrained import load_pretrained
from study.networks.libraries import last_layers
from study.results.metrics import accuracy, measure, nothing_learnt, score

if TYPE_CHECKING:
    from study.data.images import Dataset

MODEL_DIRECTORY = "model"
"""Directory of a search's kept model, in the study's directory."""
MODELS_DIRECTORY = "models"
"""Directory of a baseline's kept models, in the study's directory: one directory for each trial, by its key."""
KEPT = "model*"
"""Pattern of both."""
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"


def _check_distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ConfigError(f"must differ from each other, but got {names!r}.")
    return names


@checked
class ModelCard:
    """Everything that is needed to use a trained classifier and to train it again, as plain values."""

    recipe: Annotated[Recipe, from_table(Recipe)]
    seed: Count
    """Seed of this training, at least 0."""
    classes: Annotated[list[str], Field(min_length=2), AfterValidator(_check_distinct)]
    """Class names, in the order of the network's outputs."""
    confusion: list[list[Count]]
    """Numbers of test images, (classes, classes): row = true class, column = predicted class."""
    data: str
    """Name of the data set."""
    source: str
    """cifar10, digits, or the path of the image folder."""
    data_dir: str
    """Directory of downloaded data sets."""
    fraction: Fraction
    """Fraction of the source's images that was used, in (0, 1]."""
    data_seed: int
    """Seed of the study, from which the subset was drawn; `seed` is the seed of one of its trials."""
    image_size: int
    """Largest side in pixels that a network of the study saw; it bounds the stored size of a folder's images."""
    stored_size: Annotated[list[AtLeastOne], Field(min_length=2, max_length=2)]
    """(width, height) in pixels to which images are resized before the transforms."""
    data_fingerprint: str
    """Fingerprint of the training and test images."""
    split_fingerprint: str
    """Fingerprint of the search's training images and held-out images."""
    test_fingerprint: str
    """Fingerprint of the test images; accuracies can be compared if it is the same."""
    weights: str
    """Weights that the training started from: imagenet, none, or the path of a state dict."""
    weights_digest: str
    precision: Annotated[str, one_of("precision", ("bf16", "fp32"))]
    """bf16 or fp32, in training and in the test."""
    threads: AtLeastOne
    """Number of threads that torch computed with, at least 1."""
    arithmetic: str
    """Hardware and software that computed the training, from `Hardware.arithmetic`."""
    study: str
    uid: str
    """Identifier of the study."""
    trial: str
    """Key of the trial in its study."""
    versions: dict[str, str]
    """Versions of the packages."""
    metric: Annotated[str, one_of("metric", METRICS)] = "accuracy"
    """Metric that decided the study."""
    test_loss: float | None = None
    """Mean cross-entropy on the test images; None in older cards."""
    found: Annotated[Found, from_table(Found)] = Found()
    """What was found in the source of the images; its range of 16-bit grey values applies to new images, too."""

    def __post_init__(self) -> None:
        """Check the confusion against the classes.

        Raises:
            ConfigError: the confusion is not square, or counts no image.
        """
        count = len(self.classes)
        square = len(self.confusion) == count and all(len(row) == count for row in self.confusion)
        if not square or not any(map(any, self.confusion)):
            raise ConfigError(f"confusion: must count images of {count} classes, but got {self.confusion!r}.")

    @property
    def test_accuracy(self) -> float:
        """Fraction of the test images that were classified correctly, in [0, 1]."""
        return accuracy(self.confusion)

    @property
    def test_value(self) -> float | None:
        """The metric that decided the study, on the test images; None for a log loss that is not known."""
        return measure(self.confusion, self.test_loss).get(self.metric)

    @property
    def nothing_learnt(self) -> str | None:
        """Why the classifier has learnt nothing; None if it has learnt something."""
        return nothing_learnt(self.confusion, self.classes, self.metric)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a model card from a file.

        Raises:
            RecordError: the file is missing, or is no model card.
        """
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            with within(f"{file}: "):
                return cls(**check_value(dict[str, Any], values))
        except ConfigError as error:
            raise RecordError(str(error)) from None
        except OSError as error:
            raise RecordError(f"{file}: must be readable, but got {error.strerror!r}.") from None
        except (ValueError, RecursionError) as error:  # wrong encoding, wrong syntax, or nested too deeply
            raise RecordError(f"{file}: must be JSON, but got: {error}.") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, from which the constructor builds the card again."""
        return dataclasses.asdict(self)


class Predictor(nn.Module):
    """Map stored images to probabilities: transforms of the weights, network, softmax."""

    def __init__(self, card: ModelCard, network: nn.Module) -> None:
        """Put the transforms before `network`, which is in evaluation mode."""
        super().__init__()
        self.network = network
        self._preprocess = preprocessing(card.recipe.model, card.recipe.image_size, card.recipe.fit)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, 3, height, width) uint8 to probabilities (n, classes) float32."""
        inputs = self._preprocess(images.contiguous(memory_format=torch.channels_last))
        probabilities: Tensor = self.network(inputs).softmax(dim=1)
        return probabilities


@dataclass(frozen=True)
class SavedModel:
    """A trained classifier that is ready for prediction."""

    directory: Path
    """Directory from which the model was read."""
    card: ModelCard
    predictor: Predictor
    """The network with its transforms, in evaluation mode and fp32."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities (n, classes) float32 of images (n, 3, height, width) uint8, in fp32, on the CPU."""
        device = next(self.predictor.parameters()).device
        with torch.inference_mode():
            return self.predictor(images.to(device)).cpu()  # type: ignore[no-any-return]


def save_model(directory: Path, classifier: Classifier, card: ModelCard) -> None:
    """Write weights and model card into `directory`, both or neither; an earlier model is replaced.

    Raises:
        RecordError: the directory cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.network.state_dict().items()}
    try:
        with new_directory(directory) as draft:
            save_file(state, draft / WEIGHTS_FILE)
            text = json.dumps(card.to_dict(), indent=1, ensure_ascii=False)
            (draft / CARD_FILE).write_text(f"{text}\n", encoding="utf-8")
            # safetensors makes files that only their owner may read
            shutil.copymode(draft / CARD_FILE, draft / WEIGHTS_FILE)
            shutil.rmtree(directory, ignore_errors=True)
    except Exception as error:  # safetensors reports a full disk with its own exception class
        reason = getattr(error, "strerror", None) or error
        raise RecordError(
            f"{directory}: must be writable and have room, but got: {reason}. Free disk space, then use --resume."
        ) from error


def load_model(directory: Path) -> SavedModel:
    """Load a model that `save_model` wrote, without running code in its files.

    Raises:
        RecordError: the model card is missing or wrong, or the weights have another number of classes.
        WeightsError: the weights are missing, damaged or of another model.
    """
    card = ModelCard.read(directory / CARD_FILE)
    model, classes = card.recipe.model, len(card.classes)
    file = directory / WEIGHTS_FILE
    found = load_pretrained(model, str(file), classes=classes)
    if found.state is None or f"{last_layers(model)[0]}.weight" not in found.state:
        raise RecordError(f"{file}: must have {classes} outputs, as {CARD_FILE} says, but {found.note}.")
    classifier = build(
        model,
        classes=classes,
        unfreeze_depth=0,  # blocks that are not trained need no copy
        pretrained=found.state,
        seed=card.seed,
    )
    network = classifier.network.requires_grad_(False).to(memory_format=torch.channels_last)
    return SavedModel(directory, card, Predictor(card, network).eval())


def load_images(card: ModelCard) -> "Dataset":
    """Load the images with which a classifier was trained and tested, as they are now.

    Raises:
        ConfigError: a folder or a file is missing.
        DataError: images cannot be read.
    """
    from study.data.pixel_store import PixelStore, default_directory
    from study.data.sources import load_again

    return load_again(
        card.source,
        fraction=card.fraction,
        seed=card.data_seed,
        image_size=card.image_size,
        data_dir=Path(card.data_dir),
        fit=card.recipe.fit,
        found=card.found,
        store=PixelStore(default_directory()),
    )


def kept_models(study: Path) -> list[Path]:
    """Return the directories of the models that a study keeps: a search keeps one, a baseline one for each trial."""
    if (study / MODEL_DIRECTORY).is_dir():
        return [study / MODEL_DIRECTORY]
    return sorted((study / MODELS_DIRECTORY).glob("[!.]*"), key=lambda path: (len(path.name), path.name))


def find_model(study: Path, which: str = "") -> Path:
    """Return the directory of a model that a study keeps.

    Args:
        study: directory of the study.
        which: name of the network, or key of the trial, of a study with several models; "" for the model with the best
            result on the test images.

    Raises:
        ConfigError: the study keeps no model, or none of this name.
        RecordError: a model card cannot be read.
    """
    cards = {directory: ModelCard.read(directory / CARD_FILE) for directory in kept_models(study)}
    if not cards:
        raise ConfigError(
            f"{study}: must keep a model, but keeps none. Searches and baselines keep theirs when they end: if it was"
            " stopped, use --resume. Probes keep none."
        )
    if which:
        for directory, card in cards.items():
            if which in (card.recipe.model, card.trial):
                return directory
        raise ConfigError(unknown_name("model", which, [card.recipe.model for card in cards.values()]))
    return max(cards, key=lambda directory: _rank(cards[directory]))


def _rank(card: ModelCard) -> float:
    return -math.inf if card.test_value is None else score(card.metric, card.test_value)
