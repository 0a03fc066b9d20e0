"""A trial's first training batch in true colours: as its images are, and as its network sees them."""

import numpy as np
import torch
from matplotlib.figure import Figure

from study import figures, notebook
from study.augment import augment, draw
from study.config import Plan
from study.data import Dataset
from study.models import preprocessing, to_colours
from study.training import epoch_order


def draw_batch(plan: Plan, dataset: Dataset) -> Figure:
    """Draw the batch as the network sees it, augmented and brought to its size, in true colours."""
    recipe = plan.recipe
    if plan.stage == "as-written":
        inputs, labels = notebook.first_batch(recipe, dataset.train, seed=plan.seed)
    else:
        order = _first_images(plan, dataset)
        chosen = dataset.train.take(order.numpy())
        pixels, labels = torch.from_numpy(chosen.pixels), torch.from_numpy(chosen.labels)
        if recipe.augmentation == "autoaugment":
            pixels = augment(pixels, draw(len(dataset.train), seed=plan.seed, epoch=1).take(order))
        inputs = preprocessing(recipe.model, recipe.image_size)(pixels)
    colours = to_colours(recipe.model, inputs).numpy()
    return figures.samples(colours, labels.numpy(), dataset.classes, f"{recipe.model}: a training batch")


def draw_originals(plan: Plan, dataset: Dataset) -> Figure:
    """Draw the same images as they are stored."""
    chosen = dataset.train.take(_first_images(plan, dataset).numpy())
    colours = chosen.pixels.astype(np.float32) / 255
    return figures.samples(colours, chosen.labels, dataset.classes, f"{plan.recipe.model}: the same images as stored")


def _first_images(plan: Plan, dataset: Dataset) -> torch.Tensor:
    return epoch_order(len(dataset.train), seed=plan.seed, epoch=1)[: plan.recipe.batch_size]
