"""The sample images of a trial: the ones that it began with, before and after what was done to them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from study.augmentation.mixing import mix
from study.config.plan import Plan
from study.data.images import Dataset
from study.models.preprocessing import preprocessing, to_colours
from study.report.sample_batch import alike, draw_batch, draw_originals
from study.training import reference
from study.training.loop import epoch_mixing, epoch_order


@pytest.fixture
def dataset(make_images) -> Dataset:
    train = make_images(40, classes=40)  # one image a class, so that a name tells which
    return Dataset("pets", tuple(f"n{index}" for index in range(40)), train, train, 1.0)


def names(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def shown(figure: Figure) -> np.ndarray:
    """The images (n, 3, height, width) as they are drawn."""
    return np.stack([np.asarray(image.get_array()).transpose(2, 0, 1) for image in figure.axes[0].images])


@pytest.mark.parametrize("stage", ["baseline", "search", "final", "as-written"])
def test_batch_and_originals_are_of_the_same_images(stage, make_recipe, dataset):
    plan = Plan(0, stage, make_recipe(batch_size=8), 3)
    assert names(draw_batch(plan, dataset)) == names(draw_originals(plan, dataset))


def test_originals_as_written_are_those_that_the_solution_begins_with(make_recipe, dataset):
    recipe = make_recipe(batch_size=8)
    _, labels = reference.first_batch(recipe, dataset.train, seed=3)
    figure = draw_originals(Plan(0, "as-written", recipe, 3), dataset)
    assert names(figure) == [f"n{label}" for label in labels]
    np.testing.assert_allclose(shown(figure), dataset.train.pixels[labels.numpy()] / 255, atol=1e-6)


def test_batch_as_written_is_what_the_solution_sees(make_recipe, dataset):
    recipe = make_recipe(batch_size=8)
    inputs, _ = reference.first_batch(recipe, dataset.train, seed=3)
    figure = draw_batch(Plan(0, "as-written", recipe, 3), dataset)
    expected = np.clip(to_colours("resnet18", inputs).numpy(), 0, 1)
    np.testing.assert_allclose(shown(figure), expected, atol=1e-6)


def test_batch_without_augmentation_is_what_the_network_sees(make_recipe, dataset):
    recipe = make_recipe(batch_size=8, augmentation="none")
    order = epoch_order(40, seed=3, epoch=1)[:8].numpy()
    inputs = preprocessing("resnet18", 32)(torch.from_numpy(dataset.train.pixels[order]))
    figure = draw_batch(Plan(0, "baseline", recipe, 3), dataset)
    np.testing.assert_allclose(shown(figure), np.clip(to_colours("resnet18", inputs).numpy(), 0, 1), atol=1e-6)


def test_batch_is_of_the_images_that_the_trial_trains_on(make_recipe, dataset, make_images):
    rest = Dataset("pets", dataset.classes, dataset.train.take(np.arange(5, 25)), dataset.test, 1.0)
    drawn = names(draw_batch(Plan(0, "search", make_recipe(), 3), rest))
    assert set(drawn) <= {f"n{index}" for index in range(5, 25)}


def test_batch_shows_mixed_images_as_the_network_sees_them(make_recipe, dataset):
    recipe = make_recipe(batch_size=8, augmentation="none", mixup=1.0)
    order = epoch_order(40, seed=3, epoch=1)
    inputs = preprocessing("resnet18", 32)(torch.from_numpy(dataset.train.pixels[order.numpy()]))
    seen = mix(inputs, epoch_mixing(recipe, order, seed=3, epoch=1), order)[:8]
    figure = draw_batch(Plan(0, "baseline", recipe, 3), dataset)
    np.testing.assert_allclose(shown(figure), np.clip(to_colours("resnet18", seen).numpy(), 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "fields", [{}, {"augmentation": "flip"}, {"mixup": 1.0}, {"image_size": 48}, {"batch_size": 8}]
)
def test_trials_that_look_alike_are_drawn_the_same(fields, make_recipe, dataset):
    plan = Plan(4, "search", make_recipe(**{"batch_size": 40, "lr": 0.02, "epochs": 7} | fields), 3)
    other = Plan(5, "search", replace(plan.recipe, unfreeze_depth=3, optimizer="adamw", weight_decay=0.1), 3)
    assert alike(plan) == alike(other)
    drawn, meant = (shown(draw_batch(which, dataset)) for which in (alike(plan), plan))
    np.testing.assert_array_equal(drawn, meant)


@pytest.mark.parametrize("fields", [{"augmentation": "none"}, {"cutmix": 1.0}, {"image_size": 48}, {"batch_size": 9}])
def test_trials_that_see_other_images_are_not_alike(fields, make_recipe):
    assert alike(Plan(0, "search", make_recipe(), 3)) != alike(Plan(0, "search", make_recipe(**fields), 3))
    assert alike(Plan(0, "search", make_recipe(), 3)) != alike(Plan(0, "search", make_recipe(), 4))
