"""Search spaces: what the shipped ones promise, how values become recipes, and what a wrong file is told."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from study.config import load_toml
from study.config.load_toml import Duration, baseline_recipe, load_baseline, load_space
from study.config.recipe import Recipe
from study.config.search_space import Budget, Categorical, Float, Int, Pruner, Resources, SearchSpace
from study.config.validation import check_value
from study.errors import ConfigError

LR = 'model = "vgg16"\n[space]\nlr = { type = "float", low = 1e-5, high = 1e-2, log = true }\n'
SHIPPED = ["vgg16", "resnet18"]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], SearchSpace]:
    """Load a space from its text, as the file `pets.toml` of the current directory."""
    monkeypatch.chdir(tmp_path)

    def load(text: str) -> SearchSpace:
        Path("pets.toml").write_text(text, encoding="utf-8")
        return load_space("pets.toml")

    return load


def space(line: str) -> str:
    return f'model = "vgg16"\n[space]\n{line}\n'


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_space_holds_the_baseline(name):
    assert load_space(name).contains(baseline_recipe(name))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_space_is_the_one_promised(name):
    shipped = load_space(name)
    assert shipped.base == baseline_recipe(name)
    assert shipped.domains == {
        "unfreeze_depth": Int(0, 3),
        "lr": Float(1e-5, 1e-2, log=True),
        "batch_size": Int(16, 256, log=True),
    }
    assert shipped.budget == Budget(trials=20, time_s=7200.0)
    assert shipped.pruner == Pruner("asha", min_epochs=1, reduction_factor=2)
    assert shipped.resources == Resources()


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "mobilenet_v3_small"])
def test_shipped_space_of_another_family_searches_its_model(name):
    shipped = load_space(name)
    assert shipped.base.model == shipped.name == name
    assert {"unfreeze_depth", "lr"} <= set(shipped.domains)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_space_comments_show_lines_that_work(name, load):
    """Each example in a comment is valid once its `# ` is taken away."""
    text = load_space(name).file.read_text(encoding="utf-8")
    examples = re.compile(r"^# (?=\w+ = )", re.MULTILINE)
    searched, rest = text.split("\n[fixed]\n")
    everything = load(examples.sub("", searched) + "\n[fixed]\n" + rest)
    assert len(everything.domains) == 11
    assert load(searched + "\n[fixed]\n" + examples.sub("", rest)).resources == Resources(2, 0.5, 4)


def test_load_baseline_reads_the_assignment():
    baseline = load_baseline()
    assert (baseline.models, baseline.fraction, baseline.seed) == (("vgg16", "resnet18"), 0.1, 0)


def test_baseline_recipe_differs_between_models_in_nothing_else():
    assert dataclasses.replace(baseline_recipe("vgg16"), model="resnet18") == baseline_recipe("resnet18")


def test_load_baseline_checks_its_file(tmp_path, monkeypatch):
    shipped = load_toml.search_spaces_directory() / "baseline.toml"
    changed = shipped.read_text(encoding="utf-8").replace("lr = 1e-3", "lr = -1.0")
    (tmp_path / "baseline.toml").write_text(changed, encoding="utf-8")
    monkeypatch.setattr(load_toml, "search_spaces_directory", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"baseline\.toml: recipe\.lr: must be above 0, but got -1\.0\.$"):
        load_baseline()


def test_load_space_needs_only_a_model_and_one_domain(load):
    found = load(LR)
    assert (found.name, found.base) == ("pets", baseline_recipe("vgg16"))
    assert (found.budget, found.pruner, found.resources) == (Budget(), Pruner(), Resources())


def test_load_space_gives_an_absolute_file(load):
    assert load(LR).file == Path("pets.toml").absolute()


def test_load_space_overrides_the_baseline_by_fixed(load):
    found = load(LR + '[fixed]\noptimizer = "sgd"\nweight_decay = 0\n')
    assert found.base == dataclasses.replace(baseline_recipe("vgg16"), optimizer="sgd", weight_decay=0.0)


def test_load_space_reads_every_table(load):
    found = load(
        LR
        + '[budget]\ntrials = 3\ntime = "1m30s"\n[pruner]\nname = "none"\nmin_epochs = 2\nreduction_factor = 4\n'
        + "[resources]\ncpus_per_trial = 2\ngpus_per_trial = 0.25\nconcurrent = 4\n"
    )
    assert found.budget == Budget(3, 90.0)
    assert found.pruner == Pruner("none", 2, 4)
    assert found.resources == Resources(2, 0.25, 4)


@pytest.mark.parametrize(
    "line",
    [
        'unfreeze_depth = { type = "int", low = 0, high = 5 }',
        'optimizer = { type = "categorical", choices = ["adam", "adamw", "sgd"] }',
        'lr = { type = "float", low = 1e-5, high = 1, log = true }',
        'momentum = { type = "float", low = 0, high = 0.99 }',
        'weight_decay = { type = "categorical", choices = [0, 1e-4] }',
        'lr_schedule = { type = "categorical", choices = ["constant", "cosine", "one-cycle"] }',
        'batch_size = { type = "categorical", choices = [16, 64] }',
        'epochs = { type = "int", low = 1, high = 5 }',
        'label_smoothing = { type = "float", low = 0.0, high = 0.2 }',
        'augmentation = { type = "categorical", choices = ["none", "autoaugment"] }',
        'image_size = { type = "int", low = 224, high = 224 }',
    ],
)
def test_load_space_searches_any_field(line, load):
    assert load(space(line)).contains(baseline_recipe("vgg16"))


def test_load_space_makes_floats_of_whole_numbers(load):
    found = load(space('momentum = { type = "categorical", choices = [0, 0.9] }'))
    assert [type(choice) for choice in found.domains["momentum"].choices] == [float, float]


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({"lr": 1e-5}, True),
        ({"lr": 1e-2}, True),
        ({"lr": 0.99e-5}, False),
        ({"lr": 1.01e-2}, False),
        ({"batch_size": 32}, False),
        ({"model": "resnet18"}, False),
    ],
)
def test_space_contains_its_bounds_and_nothing_beyond_them(changes, held, load):
    assert load(LR).contains(dataclasses.replace(baseline_recipe("vgg16"), **changes)) is held


def test_momentum_stays_as_it_is_without_sgd(load):
    domains = (
        'momentum = { type = "float", low = 0, high = 0.95 }',
        'optimizer = { type = "categorical", choices = ["adam", "sgd"] }',
    )
    found = load(space("\n".join(domains)))
    assert found.recipe({"optimizer": "adam", "momentum": 0.5}) == found.base
    assert found.recipe({"optimizer": "sgd", "momentum": 0.5}).momentum == 0.5


def test_space_without_the_baseline_says_so(load):
    assert not load(LR + '[fixed]\noptimizer = "sgd"\n').contains(baseline_recipe("vgg16"))


def test_space_recipe_changes_only_what_it_is_given(load):
    found = load(LR)
    recipe = found.recipe({"lr": 5e-4})
    assert recipe == dataclasses.replace(found.base, lr=5e-4)
    assert isinstance(recipe, Recipe) and found.contains(recipe)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Int(0, 3), [0, 3], [-1, 4, 1.0, True, "1"]),
        (Float(0, 1), [0.0, 0.5, 1.0], [-0.1, 1.1, 1, float("nan")]),
        (Categorical(("adam", "sgd")), ["adam", "sgd"], ["adamw", 0]),
    ],
)
def test_domain_holds_both_ends(domain, inside, outside):
    assert all(value in domain for value in inside)
    assert not any(value in domain for value in outside)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr = 0.1", "space.lr: must be a table, but got 0.1."),
        ('lrr = { type = "float" }', "space.lrr: unknown key 'lrr'. Did you mean 'lr'? Known: "),
        ('model = { type = "categorical", choices = ["vgg16"] }', "model: must be left out, since [space] searches it"),
        ("lr = { low = 0.1, high = 0.2 }", "space.lr.type: must be 'float' or 'categorical', but got None."),
        ('lr = { type = "flot", low = 0.1 }', "space.lr.type: must be 'float' or 'categorical', but got 'flot'."),
        ("lr = { type = [], low = 0.1 }", "space.lr.type: must be 'float' or 'categorical', but got []."),
        ('lr = { type = "int", low = 1, high = 2 }', "space.lr.type: must be 'float' or 'categorical', but got 'int'."),
        (
            'epochs = { type = "float", low = 1.0, high = 2.0 }',
            "space.epochs.type: must be 'int' or 'categorical', but got 'float'.",
        ),
        (
            'optimizer = { type = "int", low = 0, high = 1 }',
            "space.optimizer.type: must be 'categorical', but got 'int'.",
        ),
        ('lr = { type = "float", low = 0.1 }', "space.lr.high: must be given, but is missing."),
        ('lr = { type = "float", lo = 0.1, high = 1.0 }', "space.lr.lo: unknown key 'lo'. Did you mean 'low'?"),
        ('lr = { type = "float", low = 0.1, high = 1.0, choices = [] }', "space.lr.choices: unknown key 'choices'."),
        ('optimizer = { type = "categorical", choices = ["adam"], log = true }', "space.optimizer.log: unknown key"),
        (
            'lr = { type = "float", low = 0.0, high = 0.1, log = true }',
            "space.lr.low: must be above 0 when log = true, but got 0.0.",
        ),
        ('lr = { type = "float", low = 0.2, high = 0.1 }', "space.lr.low: must be at most high, 0.1, but got 0.2."),
        ('lr = { type = "float", low = "1e-5", high = 0.1 }', "space.lr.low: must be a finite number, but got '1e-5'."),
        ('lr = { type = "float", low = nan, high = 0.1 }', "space.lr.low: must be a finite number, but got nan."),
        ('lr = { type = "float", low = 0.1, high = inf }', "space.lr.high: must be a finite number, but got inf."),
        ('lr = { type = "float", low = true, high = 0.1 }', "space.lr.low: must be a finite number, but got True."),
        ('lr = { type = "float", low = 0.1, high = 1, log = 1 }', "space.lr.log: must be true or false, but got 1."),
        ('lr = { type = "float", low = 0.0, high = 0.1 }', "space.lr.low: must be above 0, but got 0.0."),
        ('momentum = { type = "float", low = 0, high = 1 }', "space.momentum.high: must be below 1, but got 1.0."),
        ('epochs = { type = "int", low = 1.5, high = 2 }', "space.epochs.low: must be a whole number, but got 1.5."),
        ('unfreeze_depth = { type = "int", low = 0, high = 7 }', "space.unfreeze_depth.high: must be at most 5"),
        ('optimizer = { type = "categorical", choices = [] }', "space.optimizer.choices: must hold 1 or more"),
        ('optimizer = { type = "categorical", choices = "adam" }', "space.optimizer.choices: must be a list, but got"),
        (
            'optimizer = { type = "categorical", choices = ["adam", "adam"] }',
            "space.optimizer.choices: must differ from each other, but got 'adam' twice.",
        ),
        (
            'momentum = { type = "categorical", choices = [0, 0.0] }',
            "space.momentum.choices: must differ from each other, but got 0 twice.",
        ),
        (
            'optimizer = { type = "categorical", choices = [["adam"]] }',
            "space.optimizer.choices: must be strings or numbers, but got ['adam'].",
        ),
        (
            'optimizer = { type = "categorical", choices = ["adam", "adan"] }',
            "space.optimizer.choices.1: unknown choice 'adan'. Did you mean 'adam'? Known: adam, adamw, sgd.",
        ),
        (
            f'momentum = {{ type = "categorical", choices = [0, {10**309}] }}',
            "space.momentum.choices.1: must be a finite number, but got 1000",
        ),
        (
            f'lr = {{ type = "float", low = 0.1, high = {10**309} }}',
            "space.lr.high: must be a finite number, but got 1000",
        ),
        (
            'momentum = { type = "categorical", choices = [nan] }',
            "space.momentum.choices.0: must be a finite number, but got nan.",
        ),
        (
            'batch_size = { type = "categorical", choices = [16, 32.0] }',
            "space.batch_size.choices.1: must be a whole number, but got 32.0.",
        ),
        ("", "space: must hold 1 or more, but got {}."),
    ],
)
def test_load_space_tells_what_is_wrong_with_a_domain(line, message, load):
    with pytest.raises(ConfigError, match="^" + re.escape(f"pets.toml: {message}")):
        load(space(line))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LR.replace("vgg16", "vgg61"), "model: unknown model 'vgg61'. Did you mean 'vgg1"),
        (LR.replace('"vgg16"', "16"), "model: must be a string, but got 16."),
        (LR.replace('model = "vgg16"', ""), "model: must be given, but is missing."),
        ('model = "vgg16"', "space: must be given, but is missing."),
        ('model = "vgg16"\nspace = 3', "space: must be a table, but got 3."),
        (LR + "[bugdet]\ntrials = 3", "bugdet: unknown key 'bugdet'. Did you mean 'budget'?"),
        (LR + "[fixed]\nlr = 0.1", "fixed.lr: must not be in [space] too, but got 0.1."),
        (LR + "[fixed]\nepoch = 3", "fixed.epoch: unknown key 'epoch'. Did you mean 'epochs'?"),
        (LR + "[fixed]\nepochs = 0", "fixed.epochs: must be at least 1, but got 0."),
        (LR + "[fixed]\nepochs = 5.0", "fixed.epochs: must be a whole number, but got 5.0."),
        (LR + "[fixed]\nweight_decay = inf", "fixed.weight_decay: must be a finite number, but got inf."),
        (LR + "[budget]\ntrials = 0", "budget.trials: must be at least 1, but got 0."),
        (LR + "[budget]\ntrials = true", "budget.trials: must be a whole number, but got True."),
        (
            LR + "[budget]\ntime = '2 hours'",
            "budget.time: must be a duration such as '90s', '30m', '2h' or '1h30m', but",
        ),
        (
            LR + "[budget]\ntime = 30",
            "budget.time: must be a duration such as '90s', '30m', '2h' or '1h30m', but got 30.",
        ),
        (LR + "[budget]\ntime_s = 30", "budget.time_s: unknown key 'time_s'. Did you mean 'time'?"),
        (LR + "[pruner]\nname = 'asah'", "pruner.name: unknown choice 'asah'. Did you mean 'asha'? Known: asha, none."),
        (LR + "[pruner]\nname = []", "pruner.name: must be a string, but got []."),
        (LR + "[pruner]\nmin_epochs = 0", "pruner.min_epochs: must be at least 1, but got 0."),
        (
            LR + "[pruner]\nreduction_factor = 1",
            "pruner.reduction_factor: must be at least 2, but got 1.",
        ),
        (
            LR + f"[resources]\ncpus_per_trial = {10**309}",
            "resources.cpus_per_trial: must be a finite number, but got 1000",
        ),
        (LR + "[resources]\ncpus_per_trial = 0", "resources.cpus_per_trial: must be above 0, but got 0."),
        (
            LR + "[resources]\ngpus_per_trial = -0.5",
            "resources.gpus_per_trial: must be at least 0, but got -0.5.",
        ),
        (LR + "[resources]\ngpus_per_trial = 'all'", "resources.gpus_per_trial: must be a finite number, but got"),
        (
            LR + "[resources]\nconcurrent = 1.5",
            "resources.concurrent: must be a whole number, but got 1.5.",
        ),
        (
            LR + "[resources]\ncpu_per_trial = 1",
            "resources.cpu_per_trial: unknown key 'cpu_per_trial'. Did you mean 'cpus_per_trial'?",
        ),
        (LR + "lr = 3 3", "must be TOML, but got: "),
    ],
)
def test_load_space_tells_what_is_wrong_with_a_file(text, message, load):
    with pytest.raises(ConfigError, match="^" + re.escape(f"pets.toml: {message}")):
        load(text)


def test_load_space_lists_every_mistake(load):
    text = """
        model = "vgg61"
        space.lr = { type = "float", low = 1e-2, high = 1e-5 }
        space.momentum = { type = "float", low = -1, high = 1 }
        space.epocs = { type = "int", low = 1, high = 2 }
        fixed = { epochs = 0, image_size = 31 }
        budget = { trials = 0, time = "soon" }
        pruner = 3
        resource = { concurrent = 1 }
        """
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert [line.split(": ")[:2] for line in str(caught.value).splitlines()] == [
        ["pets.toml", key]
        for key in [
            "model", "space.lr.low", "space.momentum.low", "space.momentum.high", "space.epocs", "fixed.epochs",
            "fixed.image_size", "budget.trials", "budget.time", "pruner", "resource",
        ]
    ]  # fmt: skip


def test_load_baseline_lists_every_mistake(tmp_path, monkeypatch):
    (tmp_path / "baseline.toml").write_text("models = []\n[data]\nseed = -1\n[recipe]\nlr = 0\n")
    monkeypatch.setattr(load_toml, "search_spaces_directory", lambda: tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_baseline()
    keys = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert keys[:4] == ["models", "data.cifar10_fraction", "data.seed", "recipe.unfreeze_depth"]
    assert "recipe.lr" in keys


def test_load_space_tells_the_line_of_a_syntax_error(load):
    with pytest.raises(ConfigError, match=r"^pets\.toml: must be TOML, but got: .*line 3"):
        load('model = "vgg16"\n[space]\nlr = = 3\n')


def test_load_space_tells_of_a_file_that_is_no_text(load, tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"^binary\.toml: must be TOML, but got: .*utf-8"):
        load_space("binary.toml")


def test_load_space_reads_a_file_with_a_byte_order_mark(load):
    plain = 'model = "vgg16"\n[space]\nlr = { type = "float", low = 1e-5, high = 1e-2, log = true }\n'
    assert load(f"\ufeff{plain}").domains == load(plain).domains


@pytest.mark.parametrize(("name", "kind"), [(".", "a directory"), ("/dev/null", "a device")])
def test_load_space_takes_files_only(name, kind):
    with pytest.raises(ConfigError, match=rf"^{name}: must be a TOML file, but is {kind}\."):
        load_space(name)


def test_load_space_refuses_an_empty_name():
    with pytest.raises(ConfigError, match=r"^--search: must not be empty\.$"):
        load_space("")


@pytest.mark.parametrize("name", ["vgg61", "spaces/vgg61.toml"])
def test_load_space_suggests_a_shipped_name_for_a_missing_file(name):
    with pytest.raises(ConfigError, match=rf"^{name}: no such file; .* Did you mean 'vgg16'\?"):
        load_space(name)


def test_load_space_does_not_take_the_baseline_for_a_space():
    with pytest.raises(ConfigError, match=r"^baseline: no such file; unknown shipped search space 'baseline'"):
        load_space("baseline")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h0m1s", 3601)]
)
def test_duration_adds_hours_minutes_and_seconds(text, seconds):
    assert check_value(Duration, text) == seconds


@pytest.mark.parametrize("text", ["", f"{10**309}h", "30", "30m1h", "2 h", "-2h", "1.5h", "0s", "2d", "h"])
def test_duration_refuses_anything_else(text):
    with pytest.raises(ConfigError, match=rf"^must be a duration such as .*, but got '{text}'\.$"):
        check_value(Duration, text)
