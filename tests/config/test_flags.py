"""Flags become configurations, and those that mean nothing where they stand are refused before anything slow."""

import re

import pytest

from study.config.flags import (
    build_parser,
    change_budget,
    change_recipe,
    configure,
    count_candidates,
    fill_in,
    moved_places,
    read_prior,
    read_space,
)
from study.config.load_toml import baseline_recipe, load_baseline
from study.config.search_space import Budget
from study.errors import ConfigError


def parse(*arguments):
    return build_parser().parse_args([*arguments])


def test_configure_defaults_to_the_assignments_data_and_weights():
    config = configure(parse("--baseline"), "one")
    assert (config.data, config.fraction, config.weights, config.seed) == ("cifar10", 0.1, "imagenet", 0)
    assert (config.precision, config.cache_gb) == ("auto", None)


def test_configure_takes_all_images_of_other_data():
    assert configure(parse("--baseline", "--data", "digits"), "one").fraction == 1.0


def test_the_baselines_file_holds_the_assignments_recipe():
    values = load_baseline().values
    wanted = {"epochs": 5, "augmentation": "autoaugment", "batch_size": 64, "lr": 1e-3, "optimizer": "adam"}
    assert {key: values[key] for key in wanted} == wanted
    assert (values["unfreeze_depth"], values["lr_schedule"], values["image_size"]) == (1, "constant", 224)


@pytest.mark.parametrize(
    ("arguments", "candidates"),
    [
        ([], 3),
        (["--trials", "10"], 3),
        (["--trials", "9"], 0),
        (["--trials", "9", "--rerank", "2"], 2),
        (["--rerank", "0"], 0),
    ],
)
def test_count_candidates_spares_small_searches(arguments, candidates):
    options = parse("--search", "resnet18", *arguments)
    assert count_candidates(options, read_space("resnet18", options)) == candidates


@pytest.fixture
def mlruns(tmp_path):
    """A directory that holds the study pets-1."""
    (tmp_path / "studies" / "pets-1").mkdir(parents=True)
    (tmp_path / "studies" / "pets-1" / "journal.log").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "asked"), [([], ("auto",)), (["none"], ("none",)), (["pets-1", "pets-1"], ("pets-1",))]
)
def test_prior_is_a_word_or_names(mlruns, arguments, asked):
    assert read_prior(parse("--search", "resnet18", *(["--prior", *arguments] if arguments else [])), mlruns) == asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pest-1"], "unknown study 'pest-1'. Did you mean 'pets-1'? Known: auto, none, pets-1."),
        (["auto", "pets-1"], "auto must stand alone, but got auto pets-1."),
    ],
)
def test_prior_refuses_what_it_cannot_find(mlruns, arguments, message):
    with pytest.raises(ConfigError, match=f"^--prior: {re.escape(message)}$"):
        read_prior(parse("--search", "resnet18", "--prior", *arguments), mlruns)


@pytest.mark.parametrize(
    ("arguments", "cache_gb"),
    [([], None), (["--cache-gb", "1.5"], 1.5), (["--cache-gb", "0"], 0.0), (["--no-cache"], 0.0)],
)
def test_configure_bounds_the_store_as_the_flags_say(arguments, cache_gb):
    assert configure(parse("--search", "resnet18", *arguments), "one").cache_gb == cache_gb


@pytest.mark.parametrize(("arguments", "fit"), [([], "crop"), (["--fit", "squash"], "squash")])
def test_fit_reaches_the_baseline_and_the_space(arguments, fit):
    options = parse("--search", "resnet18", *arguments)
    recipes = change_recipe(options, baseline_recipe("resnet18")), read_space("resnet18", options).base
    assert {recipe.fit for recipe in recipes} == {fit}


def test_data_may_be_a_folder_or_a_table(tmp_path):
    for name in ("labels.csv", "pets.zip"):
        (tmp_path / name).touch()
    for data in (tmp_path, tmp_path / "labels.csv"):
        assert configure(parse("--baseline", "--data", str(data)), "one").data == str(data)
    with pytest.raises(ConfigError, match=r"^--data: must be a folder or a \.csv or \.tsv file, but got '.*pets\.zip'"):
        configure(parse("--baseline", "--data", str(tmp_path / "pets.zip")), "one")


@pytest.mark.parametrize("fraction", ["0", "1", "-0.5"])
def test_configure_refuses_a_test_fraction_out_of_range(fraction):
    with pytest.raises(ConfigError, match=r"^--test-fraction: must be (above 0|below 1), but got"):
        configure(parse("--baseline", f"--test-fraction={fraction}"), "one")


def test_configure_names_a_missing_weights_file(tmp_path):
    file = tmp_path / "mine.pth"
    with pytest.raises(
        ConfigError, match=r"^--weights: unknown weights, file or directory '.*mine\.pth'\. .*Known: imagenet, none"
    ):
        configure(parse("--baseline", "--weights", str(file)), "one")
    file.touch()
    assert configure(parse("--baseline", "--weights", str(file)), "one").weights == str(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "--seed", "0"], "--models: takes no other flags, but got --seed."),
        (["--models", "--resume", "one"], "--models: takes no other flags, but got --resume."),
        (
            ["--reproduce", "one", "--demo", "--data", "x"],
            "--reproduce: takes no other flags than --data, --data-dir, --weights, but got --demo.",
        ),
        (["--baseline", "--as-written", "--precision", "bf16"], "--precision: must be fp32 or auto with"),
        (["--baseline", "--as-written", "--fit", "pad"], "--fit: must be crop with --as-written, but got 'pad'"),
        (["--baseline", "--metric", "macro_f1"], "--metric: needs --search."),
    ],
)
def test_fill_in_refuses_what_has_no_meaning(arguments, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        fill_in(parse(*arguments))


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_fill_in_takes_the_precisions_that_as_written_has(precision):
    fill_in(parse("--baseline", "--as-written", "--precision", precision))


def test_configure_lists_every_mistake():
    flags = ["--seed=-1", "--fraction=7", "--cpus-per-trial=0", "--data=nowhere", "--weights=nothing", "--name=../up"]
    with pytest.raises(ConfigError) as caught:
        configure(parse("--baseline", *flags), "../up")
    wrong = {line.partition(":")[0] for line in str(caught.value).splitlines()}
    assert wrong == {flag.partition("=")[0] for flag in flags}


def test_recipe_flags_are_named_in_every_mistake():
    with pytest.raises(ConfigError, match=r"^--epochs: must be .* got 0\.\n--image-size: must be .* got 8\.$"):
        change_recipe(parse("--epochs", "0", "--image-size", "8"), baseline_recipe("vgg16"))


def test_budget_flags_are_named_in_every_mistake():
    with pytest.raises(ConfigError, match=r"^--trials: must be .* got 0\.\n--time-budget: must be a duration .*\.$"):
        change_budget(parse("--trials", "0", "--time-budget", "soon"), Budget())


def test_budget_flags_leave_the_rest_of_the_budget():
    assert change_budget(parse("--trials", "3"), Budget(20, 60.0)) == Budget(3, 60.0)
    assert change_budget(parse("--time-budget", "30m"), Budget(20, 60.0)) == Budget(20, 1800.0)


def test_moved_places_are_absolute_and_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert moved_places(parse("--reproduce", "one")) == {}
    given = moved_places(parse("--reproduce", "one", "--data", "pets", "--weights", "pets", "--data-dir", "there"))
    assert given == {name: str(tmp_path / place) for name, place in
                     (("source", "pets"), ("weights", "pets"), ("data_dir", "there"))}  # fmt: skip
    with pytest.raises(ConfigError, match=r"--data: .*'no'.*\n--weights: .*'none here'"):
        moved_places(parse("--reproduce", "one", "--data", "no", "--weights", "none here"))


def filled(*arguments):
    options = parse(*arguments)
    fill_in(options)
    return options


def test_demo_trains_on_small_digits_that_no_flip_mirrors():
    options = filled("--baseline", "--demo")
    recipe = change_recipe(options, baseline_recipe("resnet18"))
    assert (options.data, options.weights, options.baseline) == ("digits", "none", ["resnet18"])
    assert (recipe.image_size, recipe.augmentation) == (32, "none")


def test_demo_changes_nothing_that_a_flag_sets():
    options = filled("--baseline", "vgg16", "--demo", "--image-size", "64")
    assert options.baseline == ["vgg16"]
    assert change_recipe(options, baseline_recipe("vgg16")).image_size == 64


def test_demo_shortens_a_shipped_search_unless_told_otherwise():
    assert read_space("resnet18", filled("--search", "resnet18", "--demo")).budget.trials == 9
    assert read_space("resnet18", filled("--search", "resnet18", "--demo", "--trials", "4")).budget.trials == 4


def test_demo_changes_nothing_that_an_own_space_sets(tmp_path):
    file = tmp_path / "own.toml"
    start = 'model = "resnet18"\n[space]\nlr = { type = "float", low = 1e-5, high = 1e-2, log = true }\n'
    file.write_text(f"{start}[fixed]\nepochs = 1\n[budget]\ntrials = 2\n")
    space = read_space(str(file), filled("--search", str(file), "--demo"))
    assert (space.budget.trials, space.base.epochs) == (2, 1)
    assert (space.base.image_size, space.base.augmentation) == (32, "none")
    file.write_text(f'{start}[fixed]\nimage_size = 64\naugmentation = "flip"\n')
    space = read_space(str(file), filled("--search", str(file), "--demo"))
    assert (space.budget.trials, space.base.epochs) == (9, 3)
    assert (space.base.image_size, space.base.augmentation) == (64, "flip")


def test_demo_search_trains_every_recipe_for_three_epochs():
    assert change_recipe(filled("--search", "resnet18", "--demo"), baseline_recipe("resnet18")).epochs == 3
    assert change_recipe(filled("--baseline", "--demo"), baseline_recipe("resnet18")).epochs == 5
    longer = filled("--search", "resnet18", "--demo", "--epochs", "4")
    assert change_recipe(longer, baseline_recipe("resnet18")).epochs == 4


def test_demo_leaves_the_assignments_own_augmentation():
    recipe = change_recipe(filled("--baseline", "--as-written", "--demo"), baseline_recipe("resnet18"))
    assert recipe.augmentation == "autoaugment"
