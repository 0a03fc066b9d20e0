"""Which flags and spaces a resumed study accepts."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.manifests import make_manifest, make_space

from study.config.flags import build_parser, configure
from study.config.manifest import Manifest
from study.config.resume_flags import check_flags, check_space, recorded_config
from study.config.search_space import Budget, Categorical, Float, Pruner, Resources
from study.errors import ConfigError


@pytest.fixture
def space():
    return make_space(pruner=Pruner("asha"))


@pytest.fixture
def manifest(space):
    """The manifest of a search with a verdict of three seeds."""
    return make_manifest(space=space, repeats=3, source="digits")


@pytest.mark.parametrize(
    ("flag", "then", "now"),
    [
        ("--data", "digits", "cifar10"),
        ("--fraction", 1.0, 0.5),
        ("--weights", "none", "imagenet"),
        ("--seed", 0, 1),
        ("--precision", "auto", "fp32"),
        ("--epochs", 2, 3),
        ("--image-size", 32, 64),
        ("--fit", "crop", "pad"),
        ("--test-fraction", None, 0.3),
        ("--metric", "accuracy", "macro_f1"),
        ("--repeats", 3, 4),
        ("--repeats", 3, "auto"),
        ("--rerank", 0, 2),
        ("--pruner", "asha", "none"),
        ("--prior", ["none"], ["auto"]),
    ],
)
def test_flag_that_changes_the_study_is_refused_with_both_values(manifest, flag, then, now):
    values = map(str, now) if isinstance(now, list) else [str(now)]
    options = build_parser().parse_args(["--resume", "one", flag, *values])
    message = f"{flag}: must stay {then!r}, as recorded, but got {now!r}."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        check_flags(options, manifest, {})


def test_the_flags_that_a_study_began_with_are_taken_again(manifest):
    given = "--data digits --fraction 1 --weights none --seed 0 --epochs 2 --image-size 32 --repeats 3 --pruner asha"
    check_flags(build_parser().parse_args(["--resume", "one", *given.split()]), manifest, {})


@pytest.mark.parametrize(
    ("stage", "flags", "message"),
    [
        ("baseline", ["--baseline", "vgg16"], "--baseline: must stay 'resnet18', as recorded, but got 'vgg16'"),
        ("baseline", ["--as-written"], "--as-written: must stay 'baseline', as recorded, but got 'as-written'"),
        ("search", ["--baseline"], "--baseline: must stay 'search', as recorded, but got 'baseline'"),
        ("search", ["--as-written"], "--as-written: must stay 'search', as recorded, but got 'as-written'"),
    ],
)
def test_another_kind_of_study_and_other_models_are_refused(manifest, stage, flags, message):
    options = build_parser().parse_args(["--resume", "one", *flags])
    with pytest.raises(ConfigError, match=message):
        check_flags(options, replace(manifest, design=replace(manifest.design, stage=stage)), {})


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("baseline", ["--baseline"]),
        ("baseline", ["--baseline", "resnet18", "resnet18"]),
        ("as-written", ["--baseline", "--as-written"]),
        ("as-written", ["--baseline"]),
    ],
)
def test_recorded_kind_and_models_are_accepted_again(manifest, stage, flags):
    check_flags(
        build_parser().parse_args(["--resume", "one", *flags]),
        replace(manifest, design=replace(manifest.design, stage=stage)),
        {},
    )


@pytest.mark.parametrize(("flags", "directory"), [([], "/then"), (["--data-dir", "/now"], "/now")])
def test_downloads_may_have_moved(manifest, flags, directory):
    options = build_parser().parse_args(["--resume", "one", *flags])
    recorded = replace(manifest, data_dir="/then")
    assert recorded_config(options, recorded, configure(options, "one")).data_dir == Path(directory)


@pytest.mark.parametrize(
    ("flags", "resources"),
    [
        ([], (2, None, 1)),
        (["--concurrent", "3"], (2, None, 3)),
        (["--cpus-per-trial", "1", "--gpus-per-trial", "0"], (1, 0, 1)),
    ],
)
def test_resources_stay_as_asked_for(manifest, flags, resources):
    options = build_parser().parse_args(["--resume", "one", *flags])
    recorded = Manifest.from_dict(replace(manifest, resources=Resources(2, None, 1)).to_dict())
    config = recorded_config(options, recorded, configure(options, "one"))
    assert (config.cpus_per_trial, config.gpus_per_trial, config.concurrent) == resources


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": {"lr": Float(1e-6, 1.0)}}, r"--search small: space.lr: must stay"),
        ({"name": "other"}, r"--search: must stay 'small', as recorded, but got 'other'"),
        ({"pruner": Pruner("none")}, r"--search small: pruner.name: must stay 'asha'"),
    ],
)
def test_another_space_is_refused(manifest, space, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_space(replace(space, **changes), manifest, {"model"})


def test_space_of_choices_survives_the_journal(space):
    space = replace(space, domains={**space.domains, "optimizer": Categorical(("adam", "sgd"))})
    recorded = Manifest.from_dict(json.loads(json.dumps(make_manifest(space=space).to_dict())))
    check_space(space, recorded, {"model"})
    assert recorded.design.space == space


def test_another_budget_is_no_other_space(manifest, space):
    check_space(replace(space, budget=Budget(9, 60.0)), manifest, {"model"})


def test_space_may_leave_out_what_flags_have_set(manifest, space, make_recipe):
    """The epochs were given by a flag when the study began, and the file does not name them."""
    other = replace(space, base=make_recipe(epochs=9))
    check_space(other, manifest, {"model"})
    with pytest.raises(ConfigError, match=r"--search small: base\.epochs: must stay 2, as recorded, but got 9"):
        check_space(other, manifest, {"model", "epochs"})
