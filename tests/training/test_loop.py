"""A trial as one straight line, without Ray: images and a recipe in, numbers out."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from study.compute.feature_store import FeatureStore
from study.compute.gpu_cache import device_memory
from study.compute.hardware import Hardware
from study.data.images import Images
from study.errors import TrialError
from study.models.classifier import build
from study.results.metrics import class_scores
from study.training.loop import batch_sizes, class_weights, evaluate, train

CPU = Hardware(torch.device("cpu"), "fp32")
GPU_TOLERANCE = 0.01
"""On a CPU it is none."""


def fit(recipe, images, *, seed=0, hardware=CPU, validation=None, watch=None):
    """Train a fresh classifier; return it and its epochs."""
    classifier = build(recipe.model, classes=3, unfreeze_depth=recipe.unfreeze_depth, pretrained=None, seed=seed)
    results = list(
        train(classifier, recipe, images, classes=3, seed=seed, hardware=hardware, validation=validation, watch=watch)
    )
    return classifier, results


def losses(results):
    return [result.train_loss for result in results]


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (9, 4, [4, 5]), (3, 4, [3]), (1, 4, [1]), (3, 1, [1, 1, 1])],
)
def test_batch_sizes_never_end_in_a_single_image(images, batch_size, sizes):
    assert batch_sizes(images, batch_size) == sizes


def test_train_yields_each_epoch_once(make_recipe, make_images):
    _, results = fit(make_recipe(epochs=3), make_images(32))
    assert [result.epoch for result in results] == [1, 2, 3]


def test_train_learns_what_can_be_learnt(make_recipe, make_images):
    images = make_images(96)
    recipe = make_recipe(epochs=6, unfreeze_depth=5, augmentation="none", lr=3e-4)
    classifier, results = fit(recipe, images)
    assert results[-1].train_loss < results[0].train_loss
    assert evaluate(classifier, recipe, images, classes=3, hardware=CPU).accuracy > 0.9


# A CPU without bf16 only emulates it, slowly.
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_train_repeats_itself_for_one_seed(make_recipe, make_images, precision):
    hardware = dataclasses.replace(CPU, precision=precision)
    first, second = (fit(make_recipe(), make_images(48), hardware=hardware)[1] for _ in range(2))
    assert losses(first) == losses(second)


def test_train_differs_between_seeds(make_recipe, make_images):
    first, second = (fit(make_recipe(), make_images(48), seed=seed)[1] for seed in (0, 1))
    assert losses(first) != losses(second)


def test_train_bf16_agrees_with_fp32(make_recipe, make_images):
    """Within what bf16's eight bits of precision allow."""
    images = make_images(48)
    exact, fast = (
        fit(make_recipe(epochs=1, lr=1e-5), images, hardware=dataclasses.replace(CPU, precision=precision))[1]
        for precision in ("fp32", "bf16")
    )
    assert losses(fast) == pytest.approx(losses(exact), rel=0.03)


@pytest.mark.parametrize("depth", range(5))
def test_train_leaves_the_prefix_as_it_was(make_recipe, make_images, depth):
    recipe = make_recipe(unfreeze_depth=depth, epochs=1)
    before = build("resnet18", classes=3, unfreeze_depth=depth, pretrained=None, seed=0)
    after, _ = fit(recipe, make_images(32))
    frozen = [name for name, _ in before.prefix.named_parameters()]
    assert frozen
    for (name, old), new in zip(before.prefix.state_dict().items(), after.prefix.state_dict().values(), strict=True):
        assert torch.equal(old, new), name


def test_train_changes_the_whole_suffix(make_recipe, make_images):
    before = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    after, _ = fit(make_recipe(epochs=1), make_images(32))
    for (name, old), new in zip(before.suffix.named_parameters(), after.suffix.parameters(), strict=True):
        assert not torch.equal(old, new), name


def test_train_counts_what_is_classified_rightly_as_it_trains(make_recipe, make_images):
    """At a learning rate that changes nothing, what it counts is what an evaluation in training mode would."""
    images, recipe = make_images(40), make_recipe(epochs=1, augmentation="none", lr=1e-30, unfreeze_depth=0)
    classifier, (result,) = fit(recipe, images)
    assert result.train_accuracy == evaluate(classifier, recipe, images, classes=3, hardware=CPU).accuracy


def test_train_books_the_seconds_of_validation(make_recipe, make_images):
    recipe, validation = make_recipe(epochs=1), make_images(9, seed=1)
    (alone,), (validated,) = (fit(recipe, make_images(16), validation=held)[1] for held in (None, validation))
    assert alone.val_s == 0 < validated.val_s


def test_train_tells_why_the_store_does_not_work(make_recipe, make_images, tmp_path):
    (tmp_path / "features").write_text("a file")
    store = FeatureStore(tmp_path / "features", 10**8)
    recipe = make_recipe(epochs=1)
    classifier = build(recipe.model, classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    with pytest.warns(RuntimeWarning, match="must be writable"):
        (result,) = train(classifier, recipe, make_images(16), classes=3, seed=0, hardware=CPU, features=store)
    assert result.features == {"unstored": 16}
    assert result.store_failure == store.failure
    assert "File exists" in result.store_failure


def test_train_validates_every_epoch(make_recipe, make_images):
    _, results = fit(make_recipe(), make_images(32), validation=make_images(9, seed=1))
    assert [np.sum(result.val_confusion) for result in results] == [9, 9]
    assert all(0 <= result.val_accuracy <= 1 for result in results)


def test_train_results_do_not_depend_on_validation(make_recipe, make_images):
    _, alone = fit(make_recipe(), make_images(32))
    _, watched = fit(make_recipe(), make_images(32), validation=make_images(9, seed=1))
    assert losses(alone) == losses(watched)


def test_train_reports_progress_up_to_the_last_image(make_recipe, make_images):
    seen = []
    fit(make_recipe(epochs=1), make_images(40), watch=seen.append)
    assert [progress.images for progress in seen] == [16, 32, 40]


def test_train_names_the_epoch_of_a_nonfinite_loss(make_recipe, make_images):
    with pytest.raises(TrialError, match=r"train_loss: must stay finite, but got nan in epoch 1"):
        fit(make_recipe(lr=1e30, optimizer="sgd", unfreeze_depth=5), make_images(64))


def test_train_names_the_epoch_of_a_nonfinite_validation_loss(make_recipe, make_images):
    """The last step may spoil the weights after the last loss of training was taken."""
    recipe = make_recipe(lr=1e30, optimizer="sgd", unfreeze_depth=5, batch_size=16)
    with pytest.raises(TrialError, match=r"val_loss: must stay finite, but got \w+ in epoch 1\. Lower lr"):
        fit(recipe, make_images(16), validation=make_images(9, seed=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train_on_a_gpu_is_the_same_without_store(make_recipe, make_images, tmp_path, precision):
    """Within GPU_TOLERANCE of each loss, and of the share of images with another prediction; see docs/benchmarks.md."""
    images, recipe = make_images(200), make_recipe(lr=1e-4)
    hardware, store = Hardware(torch.device("cuda"), precision), FeatureStore(tmp_path, 10**9)
    losses, predictions = [], []
    for features in (None, store, store):
        device_memory.cache_clear()  # so that the third reads the store's files
        classifier = build(recipe.model, classes=3, unfreeze_depth=1, pretrained=None, seed=0)
        results = train(classifier, recipe, images, classes=3, seed=0, hardware=hardware, features=features)
        losses.append([result.train_loss for result in results])
        found = evaluate(classifier, recipe, images, classes=3, hardware=hardware, features=features)
        predictions.append(np.asarray(found.predictions))
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], rel=GPU_TOLERANCE)
        assert np.mean(predictions[other] != predictions[0]) <= GPU_TOLERANCE


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("lr_schedule", ["constant", "cosine", "one-cycle"])
def test_train_runs_every_optimizer_with_every_schedule(make_recipe, make_images, optimizer, lr_schedule):
    recipe = make_recipe(optimizer=optimizer, lr_schedule=lr_schedule, epochs=1, unfreeze_depth=0)
    _, results = fit(recipe, make_images(32))
    assert np.isfinite(results[0].train_loss)


def test_train_matches_a_plain_loop(make_recipe, make_images):
    """The stream of chunks and batches changes nothing: a loop over the same batches gives the same losses."""
    images, recipe = make_images(40), make_recipe(epochs=2, augmentation="none", unfreeze_depth=1)
    _, results = fit(recipe, images)

    from torch.nn.functional import cross_entropy

    from study.models.preprocessing import preprocessing
    from study.training.loop import epoch_order

    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    classifier.network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(classifier.suffix.parameters(), 1e-3)
    inputs = preprocessing("resnet18", 32)(torch.from_numpy(images.pixels)).contiguous(
        memory_format=torch.channels_last
    )
    expected = []
    for epoch in (1, 2):
        order = epoch_order(40, seed=0, epoch=epoch)
        total = 0.0
        classifier.suffix.train()
        for batch in order.split(16):
            with torch.no_grad():
                features = classifier.prefix(inputs[batch])
            loss = cross_entropy(classifier.suffix(features), torch.from_numpy(images.labels)[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        expected.append(total / 40)
    assert losses(results) == pytest.approx(expected, rel=1e-4)


def test_class_weights_agree_with_scikit_learn(make_recipe):
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weights = class_weights(make_recipe(class_weights="balanced"), labels, 3)
    assert weights.numpy() == pytest.approx(expected)


def test_no_class_weights_by_default(make_recipe):
    assert class_weights(make_recipe(), np.arange(3), 3) is None


def test_balanced_weights_change_nothing_for_balanced_classes(make_recipe, make_images):
    plain, balanced = (
        fit(make_recipe(class_weights=kind, batch_size=48), make_images(48))[1] for kind in ("none", "balanced")
    )
    assert losses(balanced) == pytest.approx(losses(plain), rel=1e-5)


def test_balanced_weights_find_the_rare_class(make_recipe):
    """Classes that noise hides: without weights, the frequent class is the better guess."""
    generator = np.random.default_rng(0)
    labels = (np.arange(120) % 8 == 0).astype(np.int64)
    pixels = np.clip(generator.normal(120 + 30 * labels[:, None, None, None], 60, (120, 3, 32, 32)), 0, 255)
    images = Images(pixels.astype(np.uint8), labels)
    recalls = []
    for kind in ("none", "balanced"):
        recipe = make_recipe(class_weights=kind, augmentation="none", lr=1e-3, epochs=3, unfreeze_depth=0)
        classifier, _ = fit(recipe, images)
        recalls.append(class_scores(evaluate(classifier, recipe, images, classes=3, hardware=CPU).confusion)[1].recall)
    assert recalls[1] > recalls[0]


def test_balanced_weights_work_with_the_store(make_recipe, make_images, tmp_path):
    images, recipe = make_images(40), make_recipe(class_weights="balanced")
    images = images.take(np.flatnonzero((images.labels > 0) | (np.arange(40) < 20)))
    _, plain = fit(recipe, images)
    classifier = build(recipe.model, classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    store = FeatureStore(tmp_path, 10**9)
    shared = train(classifier, recipe, images, classes=3, seed=0, hardware=CPU, features=store)
    assert losses(shared) == losses(plain)


def test_evaluate_gives_the_loss_of_each_image(make_recipe, make_images):
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    result = evaluate(classifier, make_recipe(), make_images(20), classes=3, hardware=CPU)
    assert len(result.losses) == 20
    assert np.mean(result.losses) == pytest.approx(result.loss)


def test_evaluate_counts_each_image_once(make_recipe, make_images):
    images = make_images(70)
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    result = evaluate(classifier, make_recipe(), images, classes=3, hardware=CPU)
    assert np.sum(result.confusion, axis=1).tolist() == np.bincount(images.labels).tolist()
    assert result.accuracy == np.mean(np.asarray(result.predictions) == images.labels)


def test_train_with_an_average_keeps_and_validates_it(make_recipe, make_images):
    """Training itself stays as it was; the classifier is the average of its steps, computed here by hand."""
    images, held = make_images(48), make_images(9, seed=1)
    recipe = make_recipe(epochs=2, batch_size=48, unfreeze_depth=0, augmentation="none")
    steps = [build("resnet18", classes=3, unfreeze_depth=0, pretrained=None, seed=0).network.fc.weight.detach()]
    for epochs in (1, 2):
        plain, results = fit(dataclasses.replace(recipe, epochs=epochs), images)
        steps.append(plain.network.fc.weight.detach())
    averaged, with_average = fit(dataclasses.replace(recipe, ema_decay=0.99), images, validation=held)
    after_one = steps[0] * 2 / 11 + steps[1] * 9 / 11
    assert torch.allclose(averaged.network.fc.weight, after_one * 3 / 12 + steps[2] * 9 / 12, atol=1e-6)
    assert losses(with_average) == losses(results)
    assert evaluate(averaged, recipe, held, classes=3, hardware=CPU).loss == with_average[-1].val_loss


def test_train_reads_repeated_views_from_the_store(make_recipe, make_images, tmp_path):
    recipe = make_recipe(epochs=5, views=2, unfreeze_depth=0)
    classifier = build(recipe.model, classes=3, unfreeze_depth=0, pretrained=None, seed=0)
    store = FeatureStore(tmp_path, 10**9)
    shared = list(train(classifier, recipe, make_images(40), classes=3, seed=0, hardware=CPU, features=store))
    assert [result.features for result in shared[2:]] == [{"read": 40}] * 3
    assert losses(shared) == losses(fit(recipe, make_images(40))[1])


def test_train_begins_with_the_same_views_whatever_their_number(make_recipe, make_images):
    fresh, repeated = (
        fit(make_recipe(epochs=3, views=views, unfreeze_depth=0), make_images(40))[1] for views in (0, 2)
    )
    assert losses(fresh)[:2] == losses(repeated)[:2]
    assert losses(fresh)[2] != losses(repeated)[2]


SHARED = [
    {"augmentation": "flip"},
    {"augmentation": "random-resized-crop"},
    {"mixup": 0.2, "batch_size": 24},
    {"mixup": 0.2, "cutmix": 1.0, "augmentation": "none"},
]


def train_twice(recipe, images, folder, changes):
    """Train a recipe, and then one with changes, with one store; return the epochs of both."""
    store, runs = FeatureStore(folder, 10**9), []
    for each in (recipe, dataclasses.replace(recipe, **changes)):
        classifier = build(recipe.model, classes=3, unfreeze_depth=each.unfreeze_depth, pretrained=None, seed=0)
        runs.append([*train(classifier, each, images, classes=3, seed=0, hardware=CPU, features=store)])
    return runs


@pytest.mark.parametrize("changes", SHARED)
def test_train_shares_changed_images_exactly(make_recipe, make_images, tmp_path, changes):
    recipe, images = make_recipe(unfreeze_depth=0, **changes), make_images(100)
    first, second = train_twice(recipe, images, tmp_path, {})
    assert losses(first) == losses(second) == losses(fit(recipe, images)[1])
    assert [result.features for result in second] == [{"read": 100}] * 2


def test_train_shares_mixed_images_with_a_longer_prefix(make_recipe, make_images, tmp_path):
    recipe, images = make_recipe(unfreeze_depth=1, mixup=0.2), make_images(100)
    _, second = train_twice(recipe, images, tmp_path, {"unfreeze_depth": 0})
    assert losses(second) == losses(fit(dataclasses.replace(recipe, unfreeze_depth=0), images)[1])


def test_train_never_shares_images_that_are_mixed_otherwise(make_recipe, make_images, tmp_path):
    recipe, images = make_recipe(unfreeze_depth=0, epochs=1), make_images(40)
    _, second = train_twice(recipe, images, tmp_path, {"mixup": 0.2})
    assert second[0].features.get("read", 0) == 0


def test_train_accuracy_of_mixed_images_counts_shares(make_recipe, make_images):
    """Of images that are all of one class, each prediction of it is wholly right; mixing different ones is not."""
    images = make_images(60)
    one = Images(images.pixels, np.zeros_like(images.labels))
    alike, different = (
        fit(make_recipe(mixup=1.0, epochs=4, unfreeze_depth=0, lr=0.01), each)[1][-1].train_accuracy
        for each in (one, images)
    )
    assert alike == 1
    assert 0 < different < 1
