"""Make recipes, search spaces and manifests of small studies for tests."""

from pathlib import Path

from study.config.load_toml import load_baseline
from study.config.manifest import Manifest
from study.config.plan import Design
from study.config.recipe import Recipe
from study.config.search_space import Budget, Float, Pruner, Resources, SearchSpace


def small_recipe(**changes: object) -> Recipe:
    """Return the baseline's recipe, made small: resnet18 at 32 px, two epochs; keywords change fields."""
    small = {"model": "resnet18", "image_size": 32, "epochs": 2, "batch_size": 16}
    return Recipe(**{**load_baseline().values, **small, **changes})


def make_space(**changes: object) -> SearchSpace:
    """Return a space over the learning rate, with 3 trials and no pruner; keywords change fields."""
    values = {
        "name": "small",
        "file": Path("/spaces/small.toml"),
        "domains": {"lr": Float(1e-5, 1.0)},
        "base": small_recipe(),
        "budget": Budget(3),
        "pruner": Pruner("none"),
        "resources": Resources(),
    }
    return SearchSpace(**{**values, **changes})


def make_manifest(
    design: Design | None = None, *, space: SearchSpace | None = None, repeats: int = 1, **changes: object
) -> Manifest:
    """Return the manifest of a study of pets: a baseline, or a search of `space`; keywords change fields."""
    if design is None:
        base = space.base if space else small_recipe()
        design = Design("search" if space else "baseline", (base,), space, repeats if space else 0)
    values = {
        "data": "pets", "source": "/pets", "data_dir": "/nowhere", "classes": ("cat", "dog"), "fraction": 1.0,
        "image_size": 32, "train_images": 16, "val_images": 4, "test_images": 8, "data_fingerprint": "d" * 16,
        "split_fingerprint": "s" * 16, "weights": "none", "weights_digests": {"resnet18": "none"}, "seed": 0,
        "precision": "auto", "tracking_uri": None, "versions": {"torch": "2"}, "git_commit": None,
    }  # fmt: skip
    return Manifest(design=design, **{**values, **changes})
