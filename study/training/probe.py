"""Fit a linear probe: logistic regression on the features that a pretrained network computes before its last layer.

The features come from the feature store where they can. This module trains no network and knows no study.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from study.compute.feature_store import FeatureStore
from study.compute.features import classify
from study.compute.hardware import Hardware
from study.config.recipe import Recipe
from study.data.images import Images
from study.data.splits import draw_held_out
from study.errors import TrialError
from study.models.classifier import Classifier
from study.networks.libraries import last_layers
from study.seeding import derive_seed

PENALTIES = tuple(10.0**power for power in range(-5, 3))
"""Inverse strengths C of the penalty that are tried, from strong to weak, on features of unit variance.

scikit-learn's C: the loss is C · (sum of the images' cross-entropies) + ½ · (sum of squared weights).
"""
PATIENCE = 2
"""Weaker penalties are no longer tried once this many in a row have raised the validation loss."""
MAX_ITERATIONS = 1_000
HELD_OUT = 0.1
"""Fraction of the training images that chooses the penalty where the probe only begins a network's training."""

TIMED_IMAGES, TIMED_RUNS = 32, 3
"""Images and runs that measure the speed of prediction: few, since a probe is to take one forward pass an image."""

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """A linear classifier: `features @ weight.T + bias` gives the logits (n, classes)."""

    weight: NDArray[np.float64]
    """(classes, features)."""
    bias: NDArray[np.float64]
    """(classes,)."""
    penalty: float
    """The chosen value of PENALTIES."""

    def logits(self, features: Features) -> Tensor:
        """Return the logits (n, classes) float32 of features (n, features)."""
        return torch.from_numpy(features @ self.weight.T + self.bias).float()


def fit_probe(
    features: Features,
    labels: NDArray[np.int64],
    held_out: Features,
    held_out_labels: NDArray[np.int64],
    *,
    classes: int,
    balanced: bool = False,
) -> Probe:
    """Fit logistic regressions from the strongest penalty on, and return the one with the least loss on other images.

    scikit-learn's solver L-BFGS starts each fit from the last, which makes the path of fits as fast as one (Friedman,
    Hastie and Tibshirani, doi:10.18637/jss.v033.i01). Nothing is random.

    Args:
        features: features of the training images, (n, features) float32.
        labels: their classes, (n,); each class occurs.
        held_out: features of the images that choose the penalty, (m, features) float32.
        held_out_labels: their classes, (m,).
        classes: number of classes, at least 2.
        balanced: whether classes count the same, whatever the number of their images.

    Raises:
        TrialError: features are not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if not (np.isfinite(features).all() and np.isfinite(held_out).all()):
        raise TrialError("features: must be finite, but are not. Try --precision fp32, or other weights.")
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1.0)
    scaled = ((features - mean) / scale).astype(np.float32)
    model = LogisticRegression(
        solver="lbfgs", max_iter=MAX_ITERATIONS, warm_start=True, class_weight="balanced" if balanced else None
    )
    best, least, worse = None, np.inf, 0
    for penalty in PENALTIES:
        # One thread: the result then depends on no number of cores, and many small products gain nothing from more.
        # Beside other programs, threads that wait for each other took 35 times as long.
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning), threadpool_limits(1):
            model.set_params(C=penalty).fit(scaled, labels)
        probe = _unscaled(model.coef_, model.intercept_, mean, scale, penalty, classes)
        loss = nn.functional.cross_entropy(probe.logits(held_out), torch.from_numpy(held_out_labels)).item()
        if loss < least:
            best, least, worse = probe, loss, 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    assert best
    return best


def _unscaled(
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    penalty: float,
    classes: int,
) -> Probe:
    """Return the probe for features as they are, from one for features of mean 0 and deviation 1."""
    if classes == 2:  # scikit-learn returns the logit of the second class; a softmax of ± half of it is the same
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight.astype(np.float64) / scale
    return Probe(weight, bias - weight @ mean, penalty)


def compute_features(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    hardware: Hardware,
    store: FeatureStore | None,
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Features:
    """Return the inputs of the last layer, (n, features) float32, for all images in order, without augmentation.

    Of several last layers, whose outputs the network averages, the inputs are averaged: layers with equal weights then
    give what one layer gives.

    Args:
        classifier: classifier on the device; it is put into evaluation mode.
        recipe: recipe that gives the model and the image size.
        images: images of any split.
        hardware: device and precision.
        store: feature store for the frozen blocks' outputs; None to compute them.
        on_chunk: called with the number of images so far.
    """
    done = 0

    def on_logits(logits: Tensor) -> None:
        nonlocal done
        done += len(logits)
        on_chunk(done)

    layers = _last_layers(classifier)
    seen: list[list[Tensor]] = [[] for _ in layers]
    with ExitStack() as hooks:
        for layer, kept in zip(layers, seen, strict=True):
            hooks.enter_context(layer.register_forward_pre_hook(partial(_keep_input, kept)))
        classify(classifier, recipe, images, on_logits, hardware=hardware, store=store)
    features: Features = torch.stack([torch.cat(kept) for kept in seen]).mean(dim=0).numpy()
    return features


def _keep_input(kept: list[Tensor], layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    kept.append(inputs[0].flatten(1).float().cpu())


def measure_prediction(classifier: Classifier, recipe: Recipe, images: Images, hardware: Hardware) -> float:
    """Return how many images a second the whole network classifies, preprocessing included: the median of three runs.

    Args:
        classifier: classifier on the device; it is put into evaluation mode.
        recipe: recipe that gives the model and the image size.
        images: any images, of which the first TIMED_IMAGES are classified.
        hardware: device and precision.
    """
    count = min(len(images), TIMED_IMAGES)
    seconds = []
    for _ in range(1 + TIMED_RUNS):  # the first one warms up
        started = time.perf_counter()
        classify(
            classifier, recipe, images, lambda logits: logits.argmax(dim=1).cpu(),
            hardware=hardware, store=None, count=count,
        )  # fmt: skip
        seconds.append(time.perf_counter() - started)
    return count / statistics.median(seconds[1:])


def begin_with_probe(
    classifier: Classifier,
    recipe: Recipe,
    images: Images,
    *,
    classes: int,
    seed: int,
    hardware: Hardware,
    store: FeatureStore | None,
) -> None:
    """Give the last layer, or each of several, the weights of a probe that was fitted on the training images.

    Fine-tuning then begins with a head that suits the features, and distorts them less: linear probing, then
    fine-tuning (Kumar et al., arXiv:2202.10054). A tenth of the images, drawn from the seed, chooses the penalty.

    Raises:
        TrialError: features are not finite, or the last layer is no linear layer.
    """
    layers = [layer for layer in _last_layers(classifier) if isinstance(layer, nn.Linear)]
    if not layers:
        raise TrialError(f"head_init: must be random for {classifier.name}, since its last layer is no linear layer.")
    features = compute_features(classifier, recipe, images, hardware, store)
    draw = derive_seed(seed, "probe")
    held = draw_held_out(images.labels, (), fraction=HELD_OUT, seed=draw, groups=None, what="validation")
    rest = np.delete(np.arange(len(images)), held)
    probe = fit_probe(
        features[rest],
        images.labels[rest],
        features[held],
        images.labels[held],
        classes=classes,
        balanced=recipe.class_weights == "balanced",
    )
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.from_numpy(probe.weight))
            layer.bias.copy_(torch.from_numpy(probe.bias))


def _last_layers(classifier: Classifier) -> list[nn.Module]:
    return [classifier.network.get_submodule(name) for name in last_layers(classifier.name)]
