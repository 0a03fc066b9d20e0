"""Mistakes in recipes and studies are told by field, rule and value."""

import pickle
from pathlib import Path

import pytest
from support.manifests import make_manifest

from study.config.load_toml import baseline_recipe
from study.config.paths import check_new
from study.config.plan import Plan, StudyConfig
from study.config.recipe import Recipe, shown_fields
from study.errors import ConfigError, RecordError
from study.results.record import Record


def make_config(room: Path, **changes) -> StudyConfig:
    values = {
        "name": "a", "data": "digits", "data_dir": room, "fraction": 1.0, "weights": "none", "seed": 0,
        "precision": "auto", "mlruns": room, "tracking_uri": None, "ray_address": None, "cpus_per_trial": None,
        "gpus_per_trial": None, "concurrent": None, "cache_gb": None, "verbose": False,
    }  # fmt: skip
    return StudyConfig(**{**values, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vgg61"}, r"^model: unknown model 'vgg61'. Did you mean 'vgg16'\? python -m study.run --models"),
        ({"unfreeze_depth": 6}, r"unfreeze_depth: must be at most 5, but got 6\."),
        ({"lr": 0.0}, r"lr: must be above 0, but got 0\.0\."),
        ({"lr": 10**309}, r"lr: must be a finite number, but got 1000"),
        ({"lr": float("nan")}, r"lr: must be a finite number, but got nan\."),
        ({"lr": "0.1"}, r"lr: must be a finite number, but got '0\.1'\."),
        ({"batch_size": 0}, r"batch_size: must be at least 1, but got 0\."),
        ({"batch_size": True}, r"batch_size: must be a whole number, but got True\."),
        ({"epochs": 0}, r"epochs: must be at least 1, but got 0\."),
        ({"image_size": 31}, r"image_size: must be at least 32, but got 31\."),
        ({"momentum": 1.0}, r"momentum: must be below 1, but got 1\.0\."),
        ({"weight_decay": -1.0}, r"weight_decay: must be at least 0, but got -1\.0\."),
        ({"label_smoothing": 1.0}, r"label_smoothing: must be below 1, but got 1\.0\."),
        ({"optimizer": "adamm"}, r"optimizer: unknown choice 'adamm'. Did you mean 'adam"),
        ({"lr_schedule": "cosin"}, r"lr_schedule: unknown choice 'cosin'. Did you mean 'cosine'\?"),
        ({"augmentation": "mixup"}, r"augmentation: unknown choice 'mixup'. .*Known: autoaugment, flip, none, "),
        ({"head_lr_factor": 0.0}, r"head_lr_factor: must be above 0, but got 0\.0\."),
        ({"layer_decay": 1.1}, r"layer_decay: must be at most 1, but got 1\.1\."),
        ({"warmup": 1.0}, r"warmup: must be below 1, but got 1\.0\."),
        ({"clip_norm": -1.0}, r"clip_norm: must be at least 0, but got -1\.0\."),
        ({"ema_decay": 1.0}, r"ema_decay: must be below 1, but got 1\.0\."),
        ({"views": -1}, r"views: must be at least 0, but got -1\."),
        ({"mixup": -0.1}, r"mixup: must be at least 0, but got -0\.1\."),
        ({"cutmix": -0.1}, r"cutmix: must be at least 0, but got -0\.1\."),
        ({"lerning_rate": 0.1}, r"unknown key 'lerning_rate'"),
    ],
)
def test_recipe_names_field_rule_and_value(make_recipe, change, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(**change)


def test_recipe_names_every_mistake(make_recipe):
    with pytest.raises(ConfigError) as caught:
        make_recipe(lr=0, epochs=0.5, optimizer="adamm", batchsize=64)
    wrong = [line.partition(":")[0] for line in str(caught.value).splitlines()]
    assert wrong == ["optimizer", "lr", "epochs", "batchsize"]


def test_misspelt_field_is_one_mistake(make_recipe):
    values = make_recipe().to_dict()
    values["batchsize"] = values.pop("batch_size")
    with pytest.raises(ConfigError, match=r"^batchsize: unknown key 'batchsize'\. Did you mean 'batch_size'\?.*$"):
        Recipe(**values)


def test_recipe_can_be_pickled(make_recipe):
    assert pickle.loads(pickle.dumps(make_recipe())) == make_recipe()


def test_recipe_survives_the_way_through_plain_values(make_recipe):
    recipe = make_recipe(lr=3e-4)
    assert Recipe(**recipe.to_dict()) == recipe


def test_recipe_leaves_out_what_is_off(make_recipe):
    plain, warmed = make_recipe().to_dict(), make_recipe(warmup=0.1).to_dict()
    assert {name: warmed[name] for name in warmed if name not in plain} == {"warmup": 0.1}


def test_recipe_that_uses_a_new_field_survives_plain_values(make_recipe):
    recipe = make_recipe(layer_decay=0.7)
    assert Recipe(**recipe.to_dict()) == recipe


def test_shown_fields_are_those_that_any_recipe_uses(make_recipe):
    plain = make_recipe()
    assert shown_fields([plain, make_recipe(clip_norm=1.0)]) == [*plain.to_dict(), "clip_norm"]


def test_changes_from_name_what_only_the_other_recipe_uses(make_recipe):
    assert make_recipe().changes_from(make_recipe(warmup=0.1)) == {"warmup": 0.0}


def test_recipe_takes_a_whole_number_for_a_float(make_recipe):
    assert make_recipe(weight_decay=0).weight_decay == 0.0


def test_recipe_names_what_is_missing():
    values = baseline_recipe("vgg16").to_dict()
    del values["lr"]
    with pytest.raises(ConfigError, match=r"lr: must be given, but is missing\."):
        Recipe(**values)


@pytest.mark.parametrize(
    ("stage", "title"),
    [
        ("search", "#7 resnet18 · depth 2 · lr 0.00031 · batch 64"),
        ("baseline", "#7 resnet18 · depth 2 · lr 0.00031 · batch 64"),
        ("as-written", "#7 resnet18 · depth 2 · lr 0.00031 · batch 64 · as written"),
        ("final", "#final-7 resnet18 · depth 2 · lr 0.00031 · batch 64 · seed 5"),
    ],
)
def test_plan_title_tells_what_differs(make_recipe, stage, title):
    plan = Plan(7, stage, make_recipe(unfreeze_depth=2, lr=3.1e-4, batch_size=64), 5)
    assert plan.title == title


@pytest.mark.parametrize(("stage", "title"), [("search", "#7 resnet18"), ("final", "#final-7 resnet18 · seed 5")])
def test_plan_short_title_tells_number_model_and_seed(make_recipe, stage, title):
    assert Plan(7, stage, make_recipe(), 5).short_title == title


def test_check_new_says_what_the_record_would_say(tmp_path):
    check_new(tmp_path / "one")
    Record.create(tmp_path / "one", make_manifest()).close()
    with pytest.raises(RecordError) as early:
        check_new(tmp_path / "one")
    with pytest.raises(RecordError) as late:
        Record.create(tmp_path / "one", make_manifest())
    assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../escape"}, r"^name: must be 1 to 64 letters"),
        ({"name": ""}, r"^name: must be 1 to 64 letters"),
        ({"name": ".hidden"}, r"^name: must be .* begin with a letter or digit"),
        ({"fraction": 0.0}, r"^fraction: must be above 0, but got 0\.0\."),
        ({"fraction": 1.5}, r"^fraction: must be at most 1, but got 1\.5\."),
        ({"seed": -1}, r"^seed: must be at least 0, but got -1\."),
        ({"cpus_per_trial": 0.0}, r"^cpus_per_trial: must be above 0, but got 0\.0\."),
        ({"gpus_per_trial": -0.5}, r"^gpus_per_trial: must be at least 0, but got -0\.5\."),
        ({"concurrent": 0}, r"^concurrent: must be at least 1, but got 0\."),
        ({"cache_gb": -1.0}, r"^cache_gb: must be at least 0, but got -1\.0\."),
    ],
)
def test_study_config_names_field_rule_and_value(tmp_path: Path, change, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, **change)
