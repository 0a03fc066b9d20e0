"""Training that goes on from a checkpoint is training that never stopped."""

import itertools
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from study.compute.hardware import Hardware
from study.config.plan import Plan
from study.errors import RecordError
from study.models.classifier import build
from study.results.record import Record
from study.training.checkpoint import Checkpoint
from study.training.loop import train
from study.training.run_trial import open_checkpoint
from study.training.updates import build_updates

RECORDS = Path(__file__).parents[1] / "records"
CPU = Hardware(torch.device("cpu"), "fp32")


@pytest.fixture
def make_training(make_images):
    """Train a new network; with a checkpoint, from where that is."""

    def make(recipe, checkpoint=None):
        classifier = build(recipe.model, classes=3, unfreeze_depth=recipe.unfreeze_depth, pretrained=None, seed=1)
        epochs = train(classifier, recipe, make_images(40), classes=3, seed=1, hardware=CPU, checkpoint=checkpoint)
        return classifier, epochs

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam", "lr_schedule": "one-cycle"},
        {"optimizer": "sgd", "lr_schedule": "cosine", "unfreeze_depth": 2},
        {"optimizer": "adamw", "weight_decay": 0.1, "unfreeze_depth": 0},
        {"model": "mobilenet_v3_small", "lr_schedule": "constant"},
        {"warmup": 0.3, "lr_schedule": "cosine", "layer_decay": 0.5, "clip_norm": 1.0, "unfreeze_depth": 2},
        {"ema_decay": 0.9, "unfreeze_depth": 1, "views": 2},
    ],
)
def test_checkpoint_goes_on_bit_for_bit(make_training, make_recipe, tmp_path, changes):
    recipe = make_recipe(epochs=4, **changes)
    whole, epochs = make_training(recipe)
    losses = [result.train_loss for result in epochs]
    path = tmp_path / "trial.safetensors"
    _, epochs = make_training(recipe, Checkpoint(path, "me", every_s=0))
    assert [result.train_loss for result in itertools.islice(epochs, 3)] == losses[:3]  # saved after 2, died in 3
    resumed, epochs = make_training(recipe, Checkpoint(path, "me"))
    assert [(result.epoch, result.train_loss) for result in epochs] == [(3, losses[2]), (4, losses[3])]
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, resumed.network.state_dict()[name]), name


def test_checkpoint_saves_nothing_that_is_quickly_trained_again(make_training, make_recipe, tmp_path):
    _, epochs = make_training(make_recipe(), Checkpoint(tmp_path / "trial.safetensors", "me"))
    list(epochs)
    assert list(tmp_path.iterdir()) == []


def saved(make_training, make_recipe, path, owner="me"):
    classifier, _ = make_training(make_recipe())
    Checkpoint(path, owner).save(2, classifier)
    return classifier


def test_checkpoint_of_weights_alone_brings_them_back(make_training, make_recipe, tmp_path):
    path = tmp_path / "trial.safetensors"
    classifier = saved(make_training, make_recipe, path)
    other = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=2)
    assert Checkpoint(path, "me").restore(other) == 2
    assert torch.equal(other.network.fc.weight, classifier.network.fc.weight)


@pytest.mark.parametrize("content", [b"", b"cos\nsystem\n(S'touch ran'\ntR.", None])
def test_checkpoint_that_is_damaged_hostile_or_anothers_is_passed_over(make_training, make_recipe, tmp_path, content):
    path = tmp_path / "trial.safetensors"
    saved(make_training, make_recipe, path, owner="another")
    if content is not None:
        path.write_bytes(content)
    recipe = make_recipe()
    classifier, _ = make_training(recipe)
    before = classifier.network.fc.weight.clone()
    assert Checkpoint(path, "me").restore(classifier, build_updates(classifier, recipe, 6)) == 0
    assert torch.equal(classifier.network.fc.weight, before)


def test_checkpoint_in_a_forbidden_place_costs_a_warning_only(make_training, make_recipe, tmp_path):
    (tmp_path / "in the way").write_text("")
    path = tmp_path / "in the way" / "trial.safetensors"
    with pytest.warns(UserWarning, match=r"trial.safetensors: must be writable, but got: .*Training continues"):
        saved(make_training, make_recipe, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, epochs = make_training(make_recipe(), Checkpoint(path, "me", every_s=0))
        assert len(list(epochs)) == 2


def test_last_checkpoint_on_a_full_disk_is_an_error(make_training, make_recipe, small_disk):
    path = small_disk / "trial.safetensors"
    with pytest.raises(RecordError, match=r"trial.safetensors: must have room, but got: .*No space left on device"):
        saved(make_training, make_recipe, path)
    with pytest.warns(UserWarning, match=r"trial.safetensors: must have room, but got: .*Training continues"):
        _, epochs = make_training(make_recipe(), Checkpoint(path, "me", every_s=0))
        assert len(list(epochs)) == 2
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize(
    ("study", "change"),
    [("uid", {"number": 2}), ("uid", {"seed": 1}), ("uid", {"stage": "final"}), ("another", {})],
)
def test_checkpoint_belongs_to_one_trial(tmp_path, make_training, make_recipe, study, change):
    plan = Plan(1, "search", make_recipe(), 0)
    open_checkpoint(tmp_path, "uid", plan).save(1, make_training(make_recipe())[0])
    other = replace(open_checkpoint(tmp_path, study, replace(plan, **change)), path=tmp_path / plan.checkpoint)
    assert other.restore(make_training(make_recipe())[0]) == 0


def test_checkpoint_survives_a_change_of_the_recipes_fields(tmp_path, make_training, make_recipe):
    plan = Plan(1, "search", make_recipe(), 0)
    open_checkpoint(tmp_path, "uid", plan).save(1, make_training(make_recipe())[0])
    later = replace(plan, recipe=make_recipe(label_smoothing=0.1))  # as if a field had been added
    assert open_checkpoint(tmp_path, "uid", later).restore(make_training(make_recipe())[0]) == 1


@pytest.mark.parametrize(
    ("study", "change"),
    [("another", {}), (".*", {}), (None, {"number": 0}), (None, {"seed": 1}), (None, {"stage": "final"})],
)
def test_old_checkpoint_belongs_to_its_own_trial(study, change):
    record = Record.read(RECORDS / "killed")
    plan = replace(record.trials()[1].plan, **change)
    checkpoint = open_checkpoint(record.checkpoints, study or record.manifest.uid, plan)
    classifier = build("resnet18", classes=10, unfreeze_depth=0, pretrained=None, seed=0)
    assert replace(checkpoint, path=record.checkpoints / "1.safetensors").restore(classifier) == 0
