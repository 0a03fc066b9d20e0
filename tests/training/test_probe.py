"""Linear probes: the solution is scikit-learn's, and a head can begin with it."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from study.compute.feature_store import FeatureStore
from study.compute.hardware import choose_hardware
from study.config.plan import Plan, probe_recipe
from study.errors import TrialError
from study.models.classifier import build
from study.training.loop import train
from study.training.probe import PENALTIES, begin_with_probe, compute_features, fit_probe
from study.training.run_trial import Facts, Inputs, run_trial

HARDWARE = choose_hardware("fp32")


def clouds(count, classes, seed=0, features=6):
    """Features of overlapping classes, whose axes have different means and scales; the last axis is constant."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    centres = np.random.default_rng(9).normal(size=(classes, features))
    points = centres[labels] + 1.5 * generator.normal(size=(count, features))
    points = points * 10.0 ** np.arange(features) + 100
    points[:, -1] = 5
    return points.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 3])
def test_fit_probe_is_scikit_learns_solution_at_its_penalty(classes):
    features, labels = clouds(120, classes)
    probe = fit_probe(features, labels, *clouds(60, classes, seed=1), classes=classes)
    scaler = StandardScaler().fit(features)
    reference = LogisticRegression(C=probe.penalty, max_iter=5_000, tol=1e-8).fit(scaler.transform(features), labels)
    ours = torch.softmax(probe.logits(features), dim=1).numpy()
    assert ours == pytest.approx(reference.predict_proba(scaler.transform(features)), abs=5e-3)


def test_fit_probe_chooses_the_penalty_of_the_least_loss():
    features, labels = clouds(40, 3)
    held_out, truth = clouds(300, 3, seed=1)
    probe = fit_probe(features, labels, held_out, truth, classes=3)
    scaler = StandardScaler().fit(features)
    losses = {}
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=5_000).fit(scaler.transform(features), labels)
        losses[penalty] = log_loss(truth, fitted.predict_proba(scaler.transform(held_out)))
    assert probe.penalty == min(losses, key=losses.get)
    assert PENALTIES[0] < probe.penalty < PENALTIES[-1]


def test_fit_probe_repeats_itself():
    data = (*clouds(120, 3), *clouds(60, 3, seed=1))
    first, again = (fit_probe(*data, classes=3) for _ in range(2))
    assert np.array_equal(first.weight, again.weight) and np.array_equal(first.bias, again.bias)


def test_fit_probe_counts_classes_alike_if_balanced():
    features, labels = clouds(400, 2)
    kept = np.flatnonzero((labels == 0) | (np.arange(400) < 40))
    held_out = clouds(200, 2, seed=1)
    recalls = []
    for balanced in (False, True):
        probe = fit_probe(features[kept], labels[kept], *held_out, classes=2, balanced=balanced)
        recalls.append(np.mean(probe.logits(held_out[0]).argmax(dim=1).numpy()[held_out[1] == 1]))
    assert recalls[0] < recalls[1]


def test_fit_probe_refuses_features_that_are_not_finite():
    features, labels = clouds(30, 3)
    with pytest.raises(TrialError, match="features: must be finite"):
        fit_probe(features * np.inf, labels, features, labels, classes=3)


@pytest.mark.parametrize("depth", [0, 2])
def test_compute_features_are_the_inputs_of_the_last_layer(make_images, make_recipe, tmp_path, depth):
    images, recipe = make_images(70), make_recipe(unfreeze_depth=depth)
    classifier = build("resnet18", classes=3, unfreeze_depth=depth, pretrained=None, seed=0)
    store = FeatureStore(tmp_path, 10**9)
    given = [compute_features(classifier, recipe, images, HARDWARE, each) for each in (None, store, store)]
    assert np.array_equal(given[0], given[1]) and np.array_equal(given[1], given[2])
    layer = classifier.network.fc
    logits = torch.from_numpy(given[0]) @ layer.weight.T + layer.bias
    recorded = run_whole(classifier, recipe, images)
    assert logits.detach().numpy() == pytest.approx(recorded, abs=1e-4)
    assert store.tally["read"] == 70


def run_whole(classifier, recipe, images):
    from study.models.preprocessing import preprocessing

    classifier.set_evaluation()
    with torch.inference_mode():
        inputs = preprocessing(recipe.model, recipe.image_size)(torch.from_numpy(images.pixels[:]))
        return classifier.network(inputs).numpy()


def test_begin_with_probe_gives_the_head_a_good_start(make_images, make_recipe):
    """Images of classes that have a colour each are told apart before the first epoch, and without it they are not."""
    images = make_images(90)
    losses = {}
    for start in ("random", "probe"):
        recipe = make_recipe(head_init=start, unfreeze_depth=0, epochs=1, lr=1e-9, augmentation="none")
        classifier = build("resnet18", classes=3, unfreeze_depth=0, pretrained=None, seed=0)
        (result,) = train(classifier, recipe, images, classes=3, seed=0, hardware=HARDWARE)
        losses[start] = result.train_loss
    assert losses["probe"] < losses["random"] / 2


def test_begin_with_probe_does_not_depend_on_the_store(make_images, make_recipe, tmp_path):
    images, heads = make_images(60), []
    for store in (None, FeatureStore(tmp_path, 10**9)):
        classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
        begin_with_probe(classifier, make_recipe(), images, classes=3, seed=0, hardware=HARDWARE, store=store)
        heads.append(classifier.network.fc.weight.clone())
    assert torch.equal(*heads)


def test_begin_with_probe_serves_networks_with_two_heads(make_images, make_recipe):
    """A distilled network averages two heads' outputs; together they give the probe's logits."""
    images, model = make_images(30), "timm/deit_tiny_distilled_patch16_224"
    recipe = make_recipe(model=model, image_size=224, unfreeze_depth=0)
    classifier = build(model, classes=3, unfreeze_depth=0, pretrained=None, seed=0)
    begin_with_probe(classifier, recipe, images, classes=3, seed=0, hardware=HARDWARE, store=None)
    heads = classifier.network.head, classifier.network.head_dist
    assert torch.equal(heads[0].weight, heads[1].weight) and torch.equal(heads[0].bias, heads[1].bias)
    features = torch.from_numpy(compute_features(classifier, recipe, images, HARDWARE, None))
    logits = features @ heads[0].weight.T + heads[0].bias
    assert logits.detach().numpy() == pytest.approx(run_whole(classifier, recipe, images), abs=1e-4)


@pytest.fixture
def inputs(make_images):
    return Inputs(
        train=make_images(48),
        validation=make_images(24, seed=0),
        test=None,
        classes=3,
        pretrained={"resnet18": None},
        precision="fp32",
    )


def test_probe_trial_reports_its_speed_and_one_result(inputs, make_recipe):
    plan = Plan(0, "probe", probe_recipe(make_recipe()), 0)
    facts, result = run_trial(plan, inputs)
    assert isinstance(facts, Facts) and facts.predict_images_per_s > 0
    assert (result.epoch, sum(map(sum, result.val_confusion))) == (1, 24)
    assert result.val_accuracy > 0.9


def test_probe_trial_reads_what_an_earlier_one_stored(inputs, make_recipe):
    plan = Plan(0, "screen", probe_recipe(make_recipe()), 0)
    shared = dataclasses.replace(inputs, cache_gb=0.1)
    results = [list(run_trial(plan, shared))[1] for _ in range(2)]
    assert [result.features for result in results] == [{"stored": 72}, {"read": 72}]
    assert results[0].val_confusion == results[1].val_confusion
