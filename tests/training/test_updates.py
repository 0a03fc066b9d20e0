"""What a step does to the trained weights, and at which learning rates."""

import pytest
import torch
from torch import nn

from study.models.classifier import build
from study.training.updates import Average, build_lr_schedule, build_optimizer, build_updates, parameter_groups


def classifier_of(depth):
    return build("resnet18", classes=3, unfreeze_depth=depth, pretrained=None, seed=0)


def rates(recipe, steps):
    """Return the learning rate of each step, and that after the last one, as shares of `lr`."""
    optimizer = build_optimizer(recipe, [nn.Parameter(torch.zeros(1))])
    schedule = build_lr_schedule(recipe, optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"] / recipe.lr)
        optimizer.step()
        schedule.step()
    return seen, optimizer.param_groups[0]["lr"] / recipe.lr


def test_parameter_groups_decay_from_the_head_backwards(make_recipe):
    classifier = classifier_of(2)
    recipe = make_recipe(lr=0.1, layer_decay=0.5, head_lr_factor=4.0, unfreeze_depth=2)
    head, last, first = parameter_groups(classifier, recipe)
    assert [head["lr"], last["lr"], first["lr"]] == pytest.approx([0.4, 0.05, 0.025])
    for group, module in ((head, "fc"), (last, "layer4"), (first, "layer3")):
        expected = classifier.network.get_submodule(module).parameters()
        assert [*map(id, group["params"])] == [*map(id, expected)]


@pytest.mark.parametrize("depth", range(6))
def test_parameter_groups_hold_each_trained_parameter_once(make_recipe, depth):
    classifier = classifier_of(depth)
    groups = parameter_groups(classifier, make_recipe(layer_decay=0.9, unfreeze_depth=depth))
    assert len(groups) == depth + 1
    held = sorted(id(parameter) for group in groups for parameter in group["params"])
    assert held == sorted(id(parameter) for parameter in classifier.network.parameters() if parameter.requires_grad)


def test_parameter_groups_are_one_by_default(make_recipe):
    classifier = classifier_of(2)
    (group,) = parameter_groups(classifier, make_recipe(unfreeze_depth=2))
    assert [*map(id, group["params"])] == [*map(id, classifier.suffix.parameters())]


def test_one_cycle_keeps_the_rates_of_groups_apart(make_recipe):
    recipe = make_recipe(lr_schedule="one-cycle", layer_decay=0.5)
    updates = build_updates(classifier_of(1), recipe, 20)
    highest = [0.0, 0.0]
    for _ in range(19):
        updates.optimizer.step()
        updates.schedule.step()
        highest = [max(pair) for pair in zip(highest, updates.schedule.get_last_lr(), strict=True)]
    assert highest == pytest.approx([1e-3, 0.5e-3])


def test_cosine_ends_at_zero(make_recipe):
    seen, last = rates(make_recipe(lr_schedule="cosine"), 10)
    assert seen[0] == pytest.approx(1)
    assert last == pytest.approx(0, abs=1e-6)


def test_warmup_rises_linearly_and_then_stays(make_recipe):
    seen, _ = rates(make_recipe(warmup=0.4), 10)
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])


def test_warmup_leaves_the_other_steps_to_cosine(make_recipe):
    seen, last = rates(make_recipe(warmup=0.4, lr_schedule="cosine"), 10)
    alone, end = rates(make_recipe(lr_schedule="cosine"), 6)
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1, *alone])
    assert last == pytest.approx(end, abs=1e-6)


def test_warmup_sets_the_length_of_the_rise_in_one_cycle(make_recipe):
    seen, _ = rates(make_recipe(warmup=0.5, lr_schedule="one-cycle"), 20)
    assert seen.index(max(seen)) == 9
    assert seen[0] == pytest.approx(1 / 25)


@pytest.mark.parametrize("lr_schedule", ["constant", "cosine", "one-cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0.01, 0.1, 0.99])
def test_warmup_takes_any_number_of_steps(make_recipe, lr_schedule, steps, warmup):
    seen, _ = rates(make_recipe(warmup=warmup, lr_schedule=lr_schedule), steps)
    assert all(0 <= rate <= 1 + 1e-9 for rate in seen)


def step_of(recipe, scale):
    """Take one sgd step against gradients of norm 5 · scale; return the change of the weights."""
    classifier = classifier_of(0)
    updates = build_updates(classifier, recipe, 1)
    weights = classifier.network.fc.weight
    before = weights.detach().clone()
    (scale * (3 * weights[0, 0] + 4 * weights[1, 1])).backward()
    updates.step()
    return weights.detach() - before


@pytest.mark.parametrize(("scale", "norm"), [(1.0, 2.0), (0.1, 0.5)])
def test_clipping_bounds_the_norm_of_a_step(make_recipe, scale, norm):
    """Above the limit only the length changes; below it nothing does."""
    recipe = make_recipe(optimizer="sgd", lr=1.0, momentum=0.0, clip_norm=2.0, unfreeze_depth=0)
    change = step_of(recipe, scale)
    assert change.norm().item() == pytest.approx(norm, rel=1e-4)
    assert (change[1, 1] / change[0, 0]).item() == pytest.approx(4 / 3, rel=1e-4)


def test_no_clipping_by_default(make_recipe):
    recipe = make_recipe(optimizer="sgd", lr=1.0, momentum=0.0, unfreeze_depth=0)
    assert step_of(recipe, 100.0).norm().item() == pytest.approx(500, rel=1e-4)


def test_average_is_that_of_the_weights_after_each_step():
    layer = nn.BatchNorm1d(2)
    average = Average(layer, decay=0.25)
    expected = layer.weight.detach().clone()
    for step in range(1, 6):
        layer.weight.data += step
        layer.num_batches_tracked += 1
        average.update()
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    assert average.state_dict()["weight"].tolist() == pytest.approx(expected.tolist())
    assert average.state_dict()["num_batches_tracked"] == 5


def test_average_covers_the_statistics_of_batch_norm():
    layer = nn.BatchNorm1d(2)
    average = Average(layer, decay=0.9)
    layer.running_mean.fill_(11)
    average.update()
    assert average.state_dict()["running_mean"].tolist() == pytest.approx([9, 9])  # the first decay is 2 / 11


def test_average_is_exchanged_and_back():
    layer = nn.Linear(1, 1, bias=False)
    average = Average(layer, decay=0.9)
    before = layer.weight.item()
    layer.weight.data += 1
    average.exchange()
    assert layer.weight.item() == before
    average.exchange()
    assert layer.weight.item() == pytest.approx(before + 1)
