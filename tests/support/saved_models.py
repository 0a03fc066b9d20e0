"""Make small saved classifiers, as studies write them, for the tests of the code that loads them."""

from pathlib import Path

import torch

from study.config.load_toml import load_baseline
from study.config.recipe import Recipe
from study.models.classifier import Classifier, build
from study.models.saved_model import ModelCard, SavedModel, load_model, save_model
from study.networks.libraries import last_layers

CLASSES = ["cat", "dog", "eel"]


def make_card(**changes: object) -> ModelCard:
    """Make the card of a MobileNetV3 (small) at 32 px for three classes; keywords change fields of card and recipe."""
    recipe = {**load_baseline().values, "model": "mobilenet_v3_small", "image_size": 32, "epochs": 1, "fit": "crop"}
    values = {
        "recipe": {key: changes.pop(key, value) for key, value in recipe.items()},
        "seed": 7, "classes": CLASSES, "confusion": [[3, 1, 0], [0, 4, 0], [1, 0, 3]],
        "data": "pets", "source": "/pets", "data_dir": "/cache", "fraction": 1.0, "data_seed": 0,
        "image_size": 32, "stored_size": [36, 32],
        "data_fingerprint": "d" * 16, "split_fingerprint": "s" * 16, "test_fingerprint": "t" * 16,
        "weights": "none", "weights_digest": "none", "precision": "fp32", "threads": 2, "arithmetic": "a machine",
        "study": "one", "uid": "u" * 32, "trial": "final-1", "versions": {"torch": "2"},
    }  # fmt: skip
    return ModelCard(**{**values, **changes})


def make_saved(directory: Path, **changes: object) -> SavedModel:
    """Save an untrained classifier in a directory, as a study does."""
    card = make_card(**changes)
    save_model(directory, make_classifier(card.recipe, card.classes), card)
    return load_model(directory)


def make_classifier(recipe: Recipe, classes: list[str]) -> Classifier:
    """Build an untrained network whose answers differ between images.

    Its BatchNorm layers see one batch first; without that, all answers would be nearly the same.
    """
    classifier = build(recipe.model, classes=len(classes), unfreeze_depth=1, pretrained=None, seed=1)
    inputs = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for module in classifier.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    classifier.network.train()
    with torch.no_grad():
        classifier.network(inputs)
        classifier.network.get_submodule(last_layers(recipe.model)[0]).weight.mul_(10)
    classifier.set_evaluation()
    return classifier
