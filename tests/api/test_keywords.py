"""Keyword arguments mean what the flags of their names mean, and mistakes are worded for Python."""

from pathlib import Path

import numpy as np
import pytest

from study.api.keywords import (
    VERBS,
    BaselineOptions,
    ProbeOptions,
    ResumeOptions,
    SearchOptions,
    in_python,
    read_options,
    worded_for_python,
)
from study.config.flags import NEEDS, build_parser
from study.errors import ConfigError, WeightsError


def test_keywords_are_exactly_the_flags_of_studies():
    flags = {*vars(build_parser().parse_args([]))} - {*VERBS, "data"}
    assert {*BaselineOptions.__annotations__, *SearchOptions.__annotations__} == flags
    assert {*ResumeOptions.__annotations__} < flags
    assert {*ProbeOptions.__annotations__} == {flag for flag in flags if "probe" in NEEDS.get(flag, ("probe",))}


@pytest.mark.parametrize(
    ("flags", "keywords"),
    [
        (["--epochs", "3", "--fraction", "1"], {"epochs": np.int64(3), "fraction": 1}),
        (["--demo"], {"demo": True}),
        (["--trials", "2", "--repeats", "auto"], {"trials": 2, "repeats": "auto"}),
        (["--repeats", "4", "--skip-broken"], {"repeats": 4, "skip_broken": True}),
        (["--image-size", "64"], {"image_size": 64}),
        (["--image-size", "auto"], {"image_size": "auto"}),
        (["--no-cache"], {"cache_gb": 0, "verbose": False, "skip_broken": False}),
        (["--prior", "auto"], {"prior": "auto"}),
        (["--prior", "pets-1", "pets-2"], {"prior": ["pets-1", "pets-2"]}),
        (["--data-dir", "there"], {"data_dir": "there", "seed": None}),
    ],
)
def test_keywords_become_what_flags_become(flags, keywords):
    parsed = build_parser().parse_args(["--search", "resnet18", *flags])
    from study.config.flags import fill_in

    fill_in(parsed)
    assert vars(read_options("search", ["resnet18"], SearchOptions, keywords)) == vars(parsed)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epoch": 3}, "epoch: unknown keyword argument 'epoch'. Did you mean 'epochs'?"),
        ({"epochs": "3"}, "epochs: must be a whole number, but got '3'."),
        ({"epochs": True}, "epochs: must be a whole number, but got True."),
        ({"fraction": "half"}, "fraction: must be a number, but got 'half'."),
        ({"repeats": "few"}, "repeats: must be a whole number or 'auto', but got 'few'."),
        ({"image_size": "224"}, "image_size: must be a whole number or 'auto', but got '224'."),
        ({"fit": "crp"}, "fit: unknown choice 'crp'. Did you mean 'crop'?"),
        ({"demo": "yes"}, "demo: must be True or False, but got 'yes'."),
        ({"prior": 3}, "prior: must be a string or a list of strings, but got 3."),
        ({"prior": []}, "prior: must be a string or a list of strings, but got []."),
        ({"name": 3}, "name: must be a string, but got 3."),
        ({"time_budget": 60}, "time_budget: must be a duration such as '30m' or '1h30m', but got 60."),
        ({"name": ""}, "name: must not be empty."),
        ({"data": ""}, "data: must not be empty."),
        ({"weights": ""}, "weights: must not be empty."),
        ({"as_written": True}, "as_written: unknown keyword argument 'as_written'."),
    ],
)
def test_wrong_keyword_is_refused_by_its_name(keywords, message):
    with pytest.raises(ConfigError) as caught:
        read_options("search", ["resnet18"], SearchOptions, keywords)
    assert str(caught.value).startswith(message)


def test_list_of_models_is_refused_instead_of_taken_for_one():
    with pytest.raises(ConfigError, match=r"^baseline: takes names, each an argument of its own, but got \['resnet18'"):
        read_options("baseline", [["resnet18"]], BaselineOptions, {})


def test_all_wrong_keywords_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        read_options("baseline", [], BaselineOptions, {"epoch": 3, "seed": "a"})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["epoch", "seed"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("--image-size: must be at least 32", "image_size: must be at least 32"),
        ("If moved, add --data NEW-PLACE.", "If moved, add data=NEW-PLACE."),
        ("must be fp32 or auto with --as-written", "must be fp32 or auto with as_written"),
        ("continue: python -m study.run --resume one-2", "continue: study.load('one-2').resume()"),
        ("mlflow ui --backend-store-uri x", "mlflow ui --backend-store-uri x"),
        ("--no-cache", "cache_gb=0"),
        ("python -m study.run --models lists all 9.", "python -m study.run --models lists all 9."),
        ("--fit pad and --fit squash keep all of it", "fit='pad' and fit='squash' keep all of it"),
        (
            "Choose another --name, or --resume it.",
            "Choose another name, or resume it with study.load(…).resume().",
        ),
    ],
)
def test_messages_use_the_words_of_python(said, meant):
    assert in_python(said) == meant


def test_worded_for_python_keeps_the_kind_of_error():
    with pytest.raises(WeightsError, match=r"^weights: must"), worded_for_python():
        raise WeightsError("--weights: must be a file.")


def test_paths_are_taken_as_data(tmp_path):
    assert read_options("baseline", [], BaselineOptions, {"data": Path(tmp_path)}).data == str(tmp_path)
