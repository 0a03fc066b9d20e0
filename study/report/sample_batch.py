"""Draw a trial's first training batch in true colours: the stored images, and the network's input."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from study.augmentation.augment import augment, draw, fit_after
from study.augmentation.mixing import mix
from study.charts import figures
from study.compute.features import CHUNK
from study.config.plan import Plan
from study.data.images import Dataset
from study.models.preprocessing import preprocessing, to_colours
from study.training import reference
from study.training.loop import epoch_mixing, epoch_order

_UNSEEN: dict[str, Any] = {
    **{"unfreeze_depth": 0, "optimizer": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1},
    **{"lr_schedule": "constant", "label_smoothing": 0.0, "head_lr_factor": 1.0, "layer_decay": 1.0, "warmup": 0.0},
    **{"clip_norm": 0.0, "ema_decay": 0.0, "views": 0, "head_init": "random", "class_weights": "none"},
}
"""Fields of a recipe that its first batch does not depend on, with any values."""


def alike(plan: Plan) -> Plan:
    """Return one plan for all of which `draw_batch` draws the same, such as most trials of a search."""
    if plan.stage == "as-written":
        return replace(plan, number=None)
    seen = min(plan.recipe.batch_size, figures.MOST_SAMPLES)
    return replace(plan, number=None, recipe=replace(plan.recipe, batch_size=seen, **_UNSEEN))


def draw_batch(plan: Plan, dataset: Dataset) -> Figure:
    """Draw the first training batch as network input: augmented and resized, with the normalisation undone."""
    return prepare_batch(plan, dataset)()


def prepare_batch(plan: Plan, dataset: Dataset) -> Callable[[], Figure]:
    """Return a function that draws what `draw_batch` draws; it holds all it needs, and can be pickled."""
    recipe = plan.recipe
    if plan.stage == "as-written":
        inputs, order = _written_batch(plan, dataset)
    else:
        first = epoch_order(len(dataset.train), seed=plan.seed, epoch=1)
        mixing = epoch_mixing(recipe, first, seed=plan.seed, epoch=1)
        groups = 1 if mixing is None else CHUNK  # images are mixed within their group, which may reach further
        order = first[: -(-recipe.batch_size // groups) * groups]
        pixels = torch.from_numpy(dataset.train.pixels[order.numpy()])
        if recipe.augmentation != "none":
            draws = draw(len(dataset.train), seed=plan.seed, epoch=1, kind=recipe.augmentation)
            pixels = augment(pixels, draws.take(order))
        fit = fit_after(recipe.augmentation, recipe.fit)
        inputs = preprocessing(recipe.model, recipe.image_size, fit)(pixels)
        if mixing:
            parts = zip(inputs.split(CHUNK), order.split(CHUNK), strict=True)
            inputs = torch.cat([mix(part, mixing, indices) for part, indices in parts])
        inputs, order = inputs[: recipe.batch_size], order[: recipe.batch_size]
    colours = to_colours(recipe.model, inputs).numpy()
    labels = dataset.train.labels[order.numpy()]
    title = f"{recipe.model}: first training batch, network input"
    drawn = colours[: figures.MOST_SAMPLES]  # no others, since another process gets a copy
    return partial(figures.samples, drawn, labels, dataset.classes, title)


def draw_originals(plan: Plan, dataset: Dataset) -> Figure:
    """Draw the images of the first training batch as they are stored."""
    chosen = _first_images(plan, dataset).numpy()
    colours = dataset.train.pixels[chosen].astype(np.float32) / 255
    title = f"{plan.recipe.model}: first training batch, stored images"
    return figures.samples(colours, dataset.train.labels[chosen], dataset.classes, title)


def _first_images(plan: Plan, dataset: Dataset) -> torch.Tensor:
    if plan.stage == "as-written":
        return _written_batch(plan, dataset)[1]
    return epoch_order(len(dataset.train), seed=plan.seed, epoch=1)[: plan.recipe.batch_size]


def _written_batch(plan: Plan, dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first batch of the stage 'as-written', and the indices of its images, (n,) int64.

    `first_batch` returns labels but no indices. So each image gets its index as its label.
    """
    numbered = replace(dataset.train, labels=np.arange(len(dataset.train)))
    return reference.first_batch(plan.recipe, numbered, seed=plan.seed)
