"""The report holds what the record says, and nothing that a browser would have to fetch or could run."""

import html
import re
import shlex
import urllib.request
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import optuna
import pytest
from support.manifests import make_manifest as make_pets_manifest
from support.manifests import make_space
from support.probes import run_probes

from study.api.planning import plan_baseline, plan_probe, plan_searches
from study.config.flags import build_parser, configure, fill_in, read_space, recipe_changes
from study.config.load_toml import load_space
from study.config.manifest import Found
from study.config.plan import Design, Plan, Proposal, probe_recipe
from study.config.search_space import Budget, Categorical, Float, Pruner, Resources, SearchSpace
from study.data.images import Dataset, fingerprint
from study.data.sources import find_images, load_dataset
from study.report.__main__ import main
from study.report.elements import Table
from study.report.render import render, summary_html, write_report
from study.report.search_sections import MOST_PLOTTED
from study.report.study_page import describe, run_command
from study.results.metrics import EpochResult, Evaluation
from study.results.record import Record
from study.verdict.judge import choose, reach_verdict
from study.verdict.screen import plan_first_trials

CLASSES = ("cat", "<script>alert(1)</script>")


def make_manifest(design, **changes):
    return make_pets_manifest(design, **{"classes": CLASSES, "source": "pets", **changes})


def result(epoch, right):
    return EpochResult(epoch, 2.0 / epoch, 3.0, 10.0, val_loss=1.0, val_confusion=[[right, 2 - right], [0, 2]])


def evaluation(wrong):
    predictions = [0] * (4 - wrong) + [1] * (4 + wrong)
    return Evaluation(1.0, [[4 - wrong, wrong], [0, 4]], predictions)


@pytest.fixture
def dataset(make_images):
    train, test = make_images(16, classes=2), make_images(8, classes=2, seed=1)
    test = type(test)(test.pixels, np.repeat([0, 1], 4).astype(np.int64))
    return Dataset("pets", CLASSES, train, test, 1.0)


@pytest.fixture
def make_record(tmp_path, make_recipe):
    """A record of two tested models, or of a search of three trials, one pruned, with a verdict of one seed."""
    opened = []

    def make(kind, name="one", **told):
        directory = tmp_path / "mlruns" / "studies" / name
        if kind == "baseline":
            recipes = tuple(make_recipe(model=model) for model in ("resnet18", "vgg11"))
            manifest = make_manifest(Design("baseline", recipes), **told)
            record = Record.create(directory, manifest)
            record.add(Plan(None, "baseline", recipe, 0) for recipe in recipes)
            for wrong in (2, 1):
                finish(record, wrong)
        else:
            space = SearchSpace(
                "small", tmp_path, {"lr": Float(1e-5, 1.0)}, make_recipe(), Budget(3), Pruner("none"), Resources()
            )
            manifest = make_manifest(Design("search", (space.base,), space, 1), **told)
            record = Record.create(directory, manifest)
            record.add([Plan(None, "search", space.base, 0)])
            for right in (1, 2):
                plan = record.next_trial()
                for epoch in (1, 2):
                    record.epoch(plan, result(epoch, right))
                record.complete(plan)
            pruned = record.next_trial()
            record.epoch(pruned, result(1, 0))
            record.prune(pruned, "pruned")
            record.add(Plan(None, "final", trial.plan.recipe, 7) for trial in record.trials()[:2])
            for wrong in (2, 0):
                finish(record, wrong)
            reach_verdict(record, choose(record.trials()), [0] * 4 + [1] * 4)
            record.note("importances", {"lr": 1.0})
        opened.append(record)
        return record

    yield make
    for record in opened:
        record.close()


def finish(record, wrong, losses=(2.0, 1.0), seconds=3.0, **features):
    plan = record.next_trial()
    record.facts(plan, {"parameters": 11, "trainable_parameters": 8_398_858})
    for epoch, loss in enumerate(losses, start=1):
        record.epoch(plan, EpochResult(epoch, loss, seconds, 30.0 / seconds, features=features or None))
    record.tested(plan, evaluation(wrong))
    record.complete(plan)


@pytest.fixture
def make_tested(tmp_path, make_recipe):
    """A record of baseline trials, tested as `finish` is told for each: (changes of the recipe, its keywords)."""
    opened = []

    def make(*trials, name="one", **told):
        recipes = tuple(make_recipe(**changes) for changes, _ in trials)
        manifest = make_manifest(Design("baseline", recipes), **told)
        record = Record.create(tmp_path / "mlruns" / "studies" / name, manifest)
        record.add(Plan(None, "baseline", recipe, 0) for recipe in recipes)
        for _, found in trials:
            finish(record, **{"wrong": 1, **found})
        opened.append(record)
        return record

    yield make
    for record in opened:
        record.close()


def section(record, title, dataset=None):
    """The section of a study's page that has this title."""
    (found,) = (section for section in describe(record, dataset).sections if section.title == title)
    return found


def column(table, heading):
    """The cells under a heading."""
    return [row[list(table.columns).index(heading)] for row in table.rows]


@pytest.fixture
def baseline(make_record):
    return make_record("baseline")


def test_report_of_a_baseline_answers_the_assignments_questions(baseline, dataset):
    page = render([(baseline, dataset)])
    for expected in (
        "Test accuracy: vgg11 87.50%, resnet18 75.00%.", "8,398,858", "Most confused classes", "network input",
        "stored images", "million multiply-adds", "First training batch", "95 % interval",
    ):  # fmt: skip
        assert expected in page
    assert page.count("data:image/png;base64,") == 5  # confused images, and two batches of each model
    assert page.count('aria-label="Confusion matrix: ') == 2


def test_report_of_a_search_gives_verdict_importances_and_every_trial(make_record, dataset):
    page = render([(make_record("search"), dataset)])
    for expected in ("With one seed, this compares", "lr 100%", "Score of each trial", "Score by lr", "#2", "pruned"):
        assert expected in page


def test_report_loads_nothing_and_runs_no_given_text(baseline, dataset):
    page = render([(baseline, dataset)])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)""", page) == []
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)


def test_report_without_images_says_so(baseline):
    assert "The images of the study are missing or have changed, so no batch is shown." in render([(baseline, None)])


def test_report_of_a_study_without_results_is_written(tmp_path, make_recipe):
    record = Record.create(tmp_path / "studies" / "one", make_manifest(Design("baseline", (make_recipe(),))))
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    record.fail(record.next_trial(), "train_loss: must stay finite")
    page = render([(record, None)])
    assert "No trial was tested." in page
    assert "train_loss: must stay finite" in page
    record.close()


def test_report_without_a_test_shows_no_batch(tmp_path, make_recipe, dataset):
    record = Record.create(tmp_path / "studies" / "one", make_manifest(Design("baseline", (make_recipe(),))))
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    given = section(record, "First training batch", dataset)
    assert given.text == "No trial was tested, so no batch is shown."
    assert not given.pictures
    record.close()


def begin_search(tmp_path, make_recipe, trials):
    """The record of a search that has only planned its first trial."""
    space = SearchSpace(
        "small", tmp_path, {"lr": Float(1e-5, 1.0)}, make_recipe(), Budget(trials), Pruner("none"), Resources()
    )
    manifest = make_manifest(Design("search", (space.base,), space, 1))
    record = Record.create(tmp_path / "studies" / "one", manifest)
    record.add([Plan(None, "search", space.base, 0)])
    return record


def test_report_of_a_running_search_has_no_verdict_yet(tmp_path, make_recipe):
    record = begin_search(tmp_path, make_recipe, trials=3)
    assert describe(record, None).found == "No verdict yet: the study has not finished."
    for _ in range(2):
        plan = record.next_trial()
        record.epoch(plan, result(2, 1))
        record.complete(plan)
    record.note("importances", {})
    assert describe(record, None).found == "No verdict yet: the study has not finished."
    record.close()


def test_report_names_the_studies_of_first_proposals(tmp_path, make_recipe):
    space = make_space(base=make_recipe(), budget=Budget(4))
    design = Design("search", (space.base,), space, 1, proposals=(Proposal("pets-1", 7, {"lr": 0.5}),))
    record = Record.create(tmp_path / "studies" / "one", make_manifest(design))
    record.add(plan_first_trials(record))
    assert "First proposals: 1 from study pets-1 (trial 7)." in section(record, "Search results").text
    record.close()


def test_report_of_a_search_without_a_result_says_why(tmp_path, make_recipe):
    record = begin_search(tmp_path, make_recipe, trials=1)
    record.fail(record.next_trial(), "no memory")
    record.note("importances", {})
    assert describe(record, None).found.startswith("No verdict: no trial of the search has")
    record.close()


def test_seconds_to_a_loss_end_at_its_first_epoch(make_tested):
    record = make_tested(
        ({}, {"losses": (4.0, 2.5, 1.9, 0.0), "seconds": 10.0}),
        ({"model": "vgg11"}, {"losses": (4.0, 3.5, 3.0, 2.9), "seconds": 2.0}),
    )
    (table,) = section(record, "Training loss and speed").tables
    assert list(table.columns)[1:4] == ["seconds to loss 3", "seconds to loss 2", "seconds to loss 1"]
    assert [row[1:4] for row in table.rows] == [("20.0", "30.0", "40.0"), ("6.0", "–", "–")]


def test_loss_marks_are_apart_even_where_losses_nearly_agree(make_tested):
    record = make_tested(({}, {"losses": (2.000001, 2.0)}), ({"model": "vgg11"}, {"losses": (2.0000005, 2.0000001)}))
    (table,) = section(record, "Training loss and speed").tables
    marks = [heading for heading in table.columns if heading.startswith("seconds to loss")]
    assert len(set(marks)) == 3
    assert column(table, marks[-1]) == ["6.0", "6.0"]


def test_loss_marks_of_a_single_epoch_are_one(make_tested):
    (table,) = section(make_tested(({}, {"losses": (2.0,)})), "Training loss and speed").tables
    assert [heading for heading in table.columns if "loss" in heading] == ["seconds to loss 2"]
    assert column(table, "seconds to loss 2") == ["3.0"]


def test_losses_of_different_label_smoothing_are_not_compared(make_tested):
    training = section(make_tested(({}, {}), ({"label_smoothing": 0.1}, {})), "Training loss and speed")
    assert not any("loss" in heading for heading in training.tables[0].columns)
    assert "label smoothing differs (0, 0.1)" in training.text


def test_multiply_adds_are_those_of_the_studys_own_classes(make_tested):
    ours, imagenets = (
        section(make_tested(({}, {}), name=name, classes=classes), "Training loss and speed").tables[0]
        for name, classes in (("two", ("cat", "dog")), ("thousand", tuple(map(str, range(10_000)))))
    )
    two, thousand = (int(column(table, "million multiply-adds")[0]) for table in (ours, imagenets))
    assert thousand - two == pytest.approx(9_998 * 512 / 1e6, abs=1)


def test_trials_that_read_from_the_store_are_marked(make_tested):
    record = make_tested(({}, {"computed": 16}), ({"unfreeze_depth": 2}, {"read": 16}))
    (table,) = section(record, "Test accuracy").tables
    assert column(table, "training time (s)") == ["6.0", "6.0*"]
    assert column(table, "images/s") == ["10.0", "10.0*"]
    assert table.numeric[list(table.columns).index("training time (s)")]
    assert table.note.startswith("* Frozen blocks' outputs were read")
    assert column(section(record, "All trials").tables[0], "device time (s)") == ["6.0", "6.0*"]
    assert html.escape(table.note, quote=False) in render([(record, None)]).replace("&#39;", "'")


def test_trial_that_read_only_its_validation_images_is_unmarked(tmp_path, make_recipe):
    """Four of them, of the sixteen and four that each epoch tells of."""
    space = SearchSpace(
        "small", tmp_path, {"lr": Float(1e-5, 1.0)}, make_recipe(), Budget(2), Pruner("none"), Resources()
    )
    manifest = make_manifest(Design("search", (space.base,), space, 1))
    record = Record.create(tmp_path / "studies" / "one", manifest)
    record.add(Plan(None, "search", make_recipe(lr=lr), 0) for lr in (0.1, 0.2))
    for features in ({"stored": 16, "read": 4}, {"stored": 15, "read": 5}):
        record.epoch(record.next_trial(), replace(result(1, 1), features=features))
    assert column(section(record, "All trials").tables[0], "device time (s)") == ["3.0", "3.0*"]
    record.close()


def test_best_recipe_of_a_depth_is_a_complete_one(make_record):
    record = make_record("search")
    record.add([Plan(None, "search", record.trials()[0].plan.recipe, 1)])
    plan = record.next_trial()
    record.epoch(plan, result(1, 2))
    record.prune(plan, "pruned")
    (table,) = section(record, "Search results").tables
    assert [tuple(row) for row in table.rows] == [("1", record.trials()[1].plan.title, "100.00%")]


def test_a_table_without_a_mark_explains_none(baseline):
    assert section(baseline, "Test accuracy").tables[0].note == ""


def test_time_is_told_by_state_and_shares_by_image(make_tested, make_record):
    (table,) = section(make_record("search"), "Device time").tables
    assert [tuple(row) for row in table.rows] == [("complete", "4", "24.0", "0.0"), ("pruned", "1", "3.0", "3.0")]
    told = section(make_tested(({}, {"computed": 10}), ({"lr": 0.1}, {"read": 30}), name="two"), "Device time")
    assert "counted by training and validation image: 75% read, 25% computed." in told.text


def test_best_recipe_of_a_depth_has_the_highest_accuracy(tmp_path, make_recipe):
    space = SearchSpace(
        "small", tmp_path, {"lr": Float(1e-5, 1.0)}, make_recipe(), Budget(9), Pruner("none"), Resources()
    )
    manifest = make_manifest(Design("search", (space.base,), space, 1))
    record = Record.create(tmp_path / "studies" / "one", manifest)
    record.add(
        Plan(None, "search", make_recipe(unfreeze_depth=depth, lr=lr), 0) for depth in (1, 2) for lr in (0.1, 0.2)
    )
    for right in (1, 2, 2, 0):
        plan = record.next_trial()
        record.epoch(plan, result(1, right))
        record.epoch(plan, result(2, right))
        record.complete(plan)
    (table,) = section(record, "Search results").tables
    titles = [record.trials()[number].plan.title for number in (1, 2)]
    assert [tuple(row) for row in table.rows] == [("1", titles[0], "100.00%"), ("2", titles[1], "100.00%")]
    record.close()


def test_images_mistaken_most_often_come_first_with_how_often(baseline, dataset, monkeypatch):
    """Trial 0 takes images 2 and 3 for the other class, trial 1 takes 3 alone."""
    drawn = []
    original = matplotlib.axes.Axes.imshow
    monkeypatch.setattr(
        matplotlib.axes.Axes, "imshow", lambda ax, data, **more: (drawn.append(data), original(ax, data, **more))[1]
    )
    section(baseline, "Most confused classes", dataset)
    images = dataset.test.pixels.transpose(0, 2, 3, 1).astype(np.float32) / 255
    assert len([data for data in drawn if data.shape == images[0].shape]) >= 2
    np.testing.assert_array_equal(drawn[0], images[3])
    np.testing.assert_array_equal(drawn[1], images[2])


def test_every_trial_shows_every_searched_field(tmp_path, make_recipe):
    domains = {"lr": Float(1e-5, 1.0), "weight_decay": Float(0.0, 1.0), "optimizer": Categorical(("adam", "sgd"))}
    space = SearchSpace("small", tmp_path, domains, make_recipe(), Budget(1), Pruner("none"), Resources())
    manifest = make_manifest(Design("search", (space.base,), space, 1))
    record = Record.create(tmp_path / "studies" / "one", manifest)
    record.add([Plan(None, "search", make_recipe(weight_decay=0.123456, optimizer="sgd"), 0)])
    (table,) = section(record, "All trials").tables
    assert list(table.columns)[14:] == ["weight decay", "optimizer", "reason"]
    assert column(table, "weight decay") == ["0.123"]
    assert column(table, "optimizer") == ["sgd"]
    record.close()


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1.0", "–"], True),
        (["47.1 to 52.3"], True),
        (["1e-05", "0.001"], True),
        (["1,234.5*"], True),
        (["35%"], True),
        (["#1"], False),
        (["3 died"], False),
        (["", ""], False),
        (["pruned", ""], False),
    ],
)
def test_table_knows_its_columns_of_figures(cells, numeric):
    assert Table(("one",), [(cell,) for cell in cells]).numeric == [numeric]


def study_of(command):
    """The configuration and the design that the flags of a shown command stand for."""
    options = build_parser().parse_args(shlex.split(command.replace("\\\n", ""))[3:])
    fill_in(options)
    return options, configure(options, "again")


def test_command_of_a_baseline_runs_the_same_study(tmp_path, make_recipe, image_folder):
    folder = image_folder.rename(tmp_path / "cats and dogs")
    recipes = tuple(make_recipe(model=model, epochs=3, image_size=48) for model in ("vgg16", "resnet18"))
    found = Found(layout="class folders", test_fraction=0.3, skip_broken=True, left_out={"broken": 2})
    told = {"source": str(folder), "fraction": 0.5, "seed": 7, "precision": "fp32", "found": found}
    record = Record.create(tmp_path / "studies" / "one", make_manifest(Design("as-written", recipes), **told))
    options, config = study_of(run_command(record))
    assert (options.baseline, options.as_written) == (["vgg16", "resnet18"], True)
    assert recipe_changes(options) == {"epochs": 3, "image_size": 48}
    assert (config.data, config.fraction, config.seed, config.precision) == (str(folder), 0.5, 7, "fp32")
    assert (config.weights, config.test_fraction, config.skip_broken) == ("none", 0.3, True)
    page = html.unescape(render([(record, None)]))
    assert run_command(record) in page
    assert "<td>left out</td><td>2 × broken</td>" in page
    assert "<li>Left out: 2 × broken</li>" in page
    record.close()


def test_command_of_a_search_runs_the_same_study(tmp_path, make_recipe):
    space = load_space("resnet18")
    space = replace(space, budget=Budget(5, time_s=90.0), pruner=replace(space.pruner, name="none"))
    baseline = make_recipe(epochs=space.base.epochs, image_size=space.base.image_size)
    earlier = tuple(Proposal(study, trial, {}) for study, trial in (("pets-1", 3), ("pets-2", 1), ("pets-1", 2)))
    design = Design("search", (baseline,), space, 4, 2, prior=("auto",), proposals=earlier)
    record = Record.create(tmp_path / "studies" / "one", make_manifest(design, source="digits"))
    options, _ = study_of(run_command(record))
    assert (options.search, options.repeats, options.rerank) == (["resnet18"], 4, 2)
    assert options.prior == ["pets-1", "pets-2"]
    assert read_space("resnet18", options) == space
    record.close()


@pytest.mark.parametrize(
    "arguments",
    [
        "--baseline --demo --fraction 0.3 --epochs 1",
        "--baseline resnet18 timm/tf_efficientnet_lite1 --data digits --weights none",
        "--baseline resnet18 timm/tf_efficientnet_lite1 --demo",
        "--baseline vgg16 --as-written --demo",
        "--probe resnet18 timm/tf_efficientnet_lite1 --data digits --weights none --metric balanced_accuracy",
        "--probe resnet18 timm/vit_tiny_patch16_224 --demo",
        "--probe resnet18 --data digits --weights none --image-size 64 --leaks drop",
        "--search resnet18 --demo --fraction 0.3 --leaks drop",
        "--search resnet18 --data digits --weights none --epochs 3 --metric log_loss --fit pad",
    ],
)
def test_shown_command_plans_the_same_study_again(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def plan(words):
        options = build_parser().parse_args(words)
        fill_in(options)
        if options.search:
            return plan_searches(options)[0]
        return plan_probe(options) if options.probe is not None else plan_baseline(options)

    first = plan([*arguments.split(), "--prior", "none"] if "--search" in arguments else arguments.split())
    config = first.config
    dropped = 0 if config.leaks == "drop" else None
    told = {"source": config.data, "fraction": config.fraction, "weights": config.weights}
    manifest = make_manifest(first.design, found=Found(leaks_dropped=dropped), **told)
    with closing(Record.create(tmp_path / "one", manifest)) as record:
        command = run_command(record)
    again = plan(shlex.split(command.replace("\\\n", ""))[3:])
    assert again.design == first.design
    assert replace(again.config, name=config.name) == config


def test_command_names_the_file_of_an_own_space(tmp_path, make_recipe):
    file = tmp_path / "resnet18.toml"
    space = replace(load_space("resnet18"), file=file)
    manifest = make_manifest(Design("search", (space.base,), space, 1))
    record = Record.create(tmp_path / "studies" / "one", manifest)
    assert f"--search {file} " in run_command(record)
    record.close()


def test_recipes_of_all_models_stand_beside_each_other(baseline):
    (table,) = section(baseline, "Recipes and commands").tables
    assert tuple(table.columns) == ("field", "#0", "#1")
    assert table.rows[0] == ("model", "resnet18", "vgg11")


def test_recipe_of_a_search_stands_beside_the_baselines(make_record):
    (table,) = section(make_record("search"), "Recipes and commands").tables
    assert tuple(table.columns) == ("field", "#0 (baseline)", "#1 (best)")


def test_plots_of_a_search_mark_each_trial_together(make_record):
    charts = section(make_record("search"), "Search results").charts
    assert [chart.title for chart in charts] == ["Score of each trial, and the best so far", "Score by lr"]
    assert all(chart.drawing.count('data-trial="1"') == 1 for chart in charts)


def test_plots_of_several_fields_share_a_drawing(tmp_path, make_recipe):
    domains = {"lr": Float(1e-5, 1.0, log=True), "optimizer": Categorical(("adam", "sgd"))}
    space = SearchSpace("small", tmp_path, domains, make_recipe(), Budget(2), Pruner("none"), Resources())
    record = Record.create(tmp_path / "studies" / "one", make_manifest(Design("search", (space.base,), space, 1)))
    record.add([Plan(None, "search", make_recipe(lr=lr), 0) for lr in (0.1, 0.01)])
    while (plan := record.next_trial()) is not None:
        record.epoch(plan, result(1, 1))
        record.epoch(plan, result(2, 1))
        record.complete(plan)
    titles = [chart.title for chart in section(record, "Search results").charts]
    assert titles == [
        "Score of each trial, and the best so far",
        "All fields together: the stronger a line, the better its trial",
        "Score by lr",
    ]
    record.close()


def test_plots_place_a_baseline_outside_of_a_logarithmic_space(tmp_path, make_recipe):
    """The baseline has no weight decay, and convnext_tiny.toml searches it on a logarithmic scale."""
    domains = {"lr": Float(1e-5, 1.0, log=True), "weight_decay": Float(1e-8, 0.1, log=True)}
    space = SearchSpace("small", tmp_path, domains, make_recipe(), Budget(2), Pruner("none"), Resources())
    record = Record.create(tmp_path / "studies" / "one", make_manifest(Design("search", (space.base,), space, 1)))
    record.add([Plan(None, "search", make_recipe(weight_decay=value), 0) for value in (0.0, 0.01)])
    while (plan := record.next_trial()) is not None:
        record.epoch(plan, result(1, 1))
        record.epoch(plan, result(2, 1))
        record.complete(plan)
    titles = [chart.title for chart in section(record, "Search results").charts]
    assert "Score by weight decay" in titles
    record.close()


def test_report_says_why_a_long_search_has_no_plots(tmp_path, make_recipe):
    space = SearchSpace(
        "small", tmp_path, {"lr": Float(1e-5, 1.0)}, make_recipe(), Budget(3), Pruner("none"), Resources()
    )
    manifest = make_manifest(Design("search", (space.base,), space, 1))
    record = Record.create(tmp_path / "studies" / "one", manifest)
    record.add(Plan(None, "search", make_recipe(), seed) for seed in range(MOST_PLOTTED + 1))
    helps = section(record, "Search results")
    assert helps.text == f"Plots are not shown, because they are unreadable with more than {MOST_PLOTTED} trials."
    assert not helps.charts
    record.close()


def comparison(*records):
    """The view that several studies have in common."""
    from study.report.compare_studies import compare_studies

    return compare_studies(records)


@pytest.mark.parametrize(
    ("right", "headline", "cell"),
    [
        ((80, 90), "Most useful features: vgg11", "90.00%, balanced accuracy 90.00%"),
        ((50, 40), "No probe has learnt anything", "50.00%, balanced accuracy 50.00%, learnt nothing"),
    ],
)
def test_report_of_probes_ranks_and_draws_them(right, headline, cell, tmp_path, make_recipe):
    recipes = tuple(probe_recipe(make_recipe(model=model)) for model in ("resnet18", "vgg11"))
    design = Design("probe", recipes, metric="balanced_accuracy")
    with closing(Record.create(tmp_path / "studies" / "one", make_manifest(design))) as record:
        run_probes(record, *right)
        page = render([(record, None)])
    assert re.search(r"<h1[^>]*>([^<]*)</h1>", page)[1] == headline
    assert f">{cell}</td>" in page
    assert page.count('aria-label="validation accuracy of a linear probe') == 1


def test_several_studies_are_compared_before_each_is_told(make_record, dataset):
    page = render([(make_record("baseline"), dataset), (make_record("search", "two"), dataset)])
    assert page.index("Comparison of studies") < page.index('"name">one<') < page.index('"name">two<')


def test_comparison_ranks_all_tested_trials_of_the_same_images(make_tested):
    one = make_tested(({}, {"wrong": 2, "seconds": 1.0}), ({"model": "vgg11"}, {"wrong": 0, "seconds": 4.0}))
    two = make_tested(({"model": "vgg13"}, {"wrong": 1, "seconds": 2.0}), name="two")
    view = comparison(one, two)
    best = one.trials()[1].plan.title
    highest = f"On pets, the highest test accuracy is 100.00% of 8 images, by {best} of one (tested trials: 3)."
    assert highest in view.found
    assert (
        "resnet18 trains fastest: 30.0 images/s, 2.0 times as fast as vgg13, 4.0 times as fast as vgg11." in view.found
    )
    right, hardest, training = view.sections
    (table,) = right.tables
    assert [(row[0], row[2], row[8]) for row in table.rows] == [
        ("one", "75.00%", "30.0"), ("one", "100.00%", "7.5"), ("two", "87.50%", "15.0"),
    ]  # fmt: skip
    assert "over 3 tests: 3 of class cat as <script>alert(1)</script>, 0 of class <script>" in hardest.text
    assert training.charts[0].drawing.count("<polyline") == 3
    assert view.summary.headline == "vgg11 of one has the highest test accuracy: 100.00%"


def test_comparison_ranks_no_speed_that_the_store_helped_to(make_tested):
    one = make_tested(({}, {"seconds": 1.0, "read": 16}), ({"model": "vgg11"}, {"seconds": 4.0}))
    two = make_tested(({}, {"seconds": 2.0}), name="two")
    assert "resnet18 trains fastest: 15.0 images/s, 2.0 times as fast as vgg11." in comparison(one, two).found


def test_comparison_puts_trials_of_other_images_into_another_table(make_tested):
    one = make_tested(({}, {"wrong": 2}))
    two = make_tested(({}, {"wrong": 1}), name="two", data_fingerprint="e" * 16)
    view = comparison(one, two)
    tables = [table for section in view.sections for table in section.tables]
    assert [column(table, "study") for table in tables] == [["one"], ["two"]]
    assert (
        "The studies used different images, or stored the same ones differently, so trials are ranked within each set"
        " of stored images only."
    ) in view.found


def test_comparison_of_studies_without_a_test_says_so(tmp_path, make_recipe):
    record = Record.create(tmp_path / "studies" / "one", make_manifest(Design("baseline", (make_recipe(),))))
    assert comparison(record, record).found == "No trial was tested."
    record.close()


def test_write_report_leaves_one_file(baseline, dataset):
    file = write_report(baseline, dataset)
    assert file.name == "report.html"
    assert not list(file.parent.glob("*.partial"))


def test_the_command_writes_and_names_the_file(baseline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["one"]) == 0
    assert capsys.readouterr().out.strip() == str(baseline.directory / "report.html")


def test_the_command_suggests_a_name(baseline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["onee"]) == 2
    assert "Did you mean 'one'?" in capsys.readouterr().err


def test_command_compares_several_studies_in_one_file(make_record, tmp_path, monkeypatch, capsys):
    one, _ = make_record("baseline"), make_record("search", "two")
    monkeypatch.chdir(tmp_path)
    assert main(["one", "two"]) == 0
    file = one.directory / "comparison.html"
    assert capsys.readouterr().out.strip() == str(file)
    page = file.read_text()
    assert page.index("Comparison of studies") < page.index('"name">one<') < page.index('"name">two<')


def test_the_command_ends_in_a_line_when_interrupted(baseline, tmp_path, monkeypatch, capsys):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(optuna, "load_study", interrupt)
    assert main(["one"]) == 130
    assert capsys.readouterr().err == "study: interrupted; the page was not changed.\n"


def test_find_images_returns_those_that_the_study_was_run_on(make_tested, image_folder):
    there = {"source": str(image_folder), "data_dir": "nowhere"}
    dataset = load_dataset(str(image_folder), fraction=1.0, seed=0, image_size=32, data_dir=Path("nowhere"))
    same = make_tested(({}, {}), name="same", data_fingerprint=fingerprint(dataset.train, dataset.test), **there)
    assert len(find_images(same.manifest).test) == 8
    assert find_images(make_tested(({}, {}), name="other", **there).manifest) is None


def test_find_images_downloads_nothing(make_tested, tmp_path, monkeypatch):
    def fetch(*_, **__):
        raise AssertionError("a report must not reach for the network")

    monkeypatch.setattr(urllib.request, "urlopen", fetch)
    cache = tmp_path / "gone"
    assert find_images(make_tested(({}, {}), source="cifar10", data_dir=str(cache)).manifest) is None
    assert not cache.exists()


def test_report_gives_precision_and_recall_of_each_class(make_tested):
    (table,) = section(make_tested(({}, {"wrong": 1})), "Precision and recall by class").tables
    assert [row[1:] for row in table.rows] == [
        ("test", "cat", "4", "100.00", "75.00", "85.71"),
        ("test", CLASSES[1], "4", "80.00", "100.00", "88.89"),
    ]


def test_report_marks_what_has_learnt_nothing(make_tested, dataset):
    """All images are predicted as the second class."""
    record = make_tested(({}, {"wrong": 4}))
    reason = f"learnt nothing: every image is predicted as {CLASSES[1]}"
    page = describe(record, dataset)
    assert reason in page.found
    assert reason in section(record, "Test accuracy").text
    assert column(section(record, "All trials").tables[0], "reason") == [f"has {reason}"]
    hardest = section(record, "Most confused classes", dataset)
    assert (hardest.text[:37], hardest.pictures) == ("No tested trial has learnt anything, ", [])


def test_search_is_reported_by_its_own_metric(make_record):
    record = make_record("search")
    record.manifest = replace(record.manifest, design=replace(record.manifest.design, metric="macro_f1"))
    table = section(record, "Search results").tables[0]
    assert table.columns[-1] == "validation macro F1"
    assert "--metric macro_f1" in run_command(record)


def test_first_screen_of_a_search_holds_both_recipes_and_interval(make_record):
    summary = describe(make_record("search"), None).summary
    assert summary.question.startswith("Is any recipe of the search space small (lr) better than the baseline on pets")
    assert [(tile.label, tile.value) for tile in summary.tiles[:2]] == [
        ("test accuracy, baseline", "75.00%"),
        ("test accuracy, best recipe", "100.00%"),
    ]
    assert summary.tiles[2].value == "+25.0 points"
    assert "right of 0 is better" in summary.drawing


def test_first_screen_shows_recall_before_and_after_by_class(make_record):
    recalls = describe(make_record("search"), None).summary.recalls
    assert [(row.name, row.images, [*row.values], row.change) for row in recalls] == [
        ("cat", 4, [50.0, 100.0], "+50.0"),
        (CLASSES[1], 4, [100.0, 100.0], "+0.0"),
    ]


def test_first_screen_warns_of_failed_trials(tmp_path, make_recipe):
    record = begin_search(tmp_path, make_recipe, trials=1)
    record.fail(record.next_trial(), "no memory")
    assert describe(record, None).summary.warnings == ["1 of 1 trials failed: #0 resnet18."]
    record.close()


def test_first_screen_of_a_running_search_shows_the_best_validation(make_tested, tmp_path, make_recipe):
    record = begin_search(tmp_path, make_recipe, trials=2)
    plan = record.next_trial()
    record.epoch(plan, result(1, 1))
    record.epoch(plan, result(2, 1))
    record.complete(plan)
    (tile,) = describe(record, None).summary.tiles
    assert (tile.label, tile.value) == ("best validation accuracy so far", "75.00%")
    record.close()


def test_summary_is_a_part_of_a_page_with_its_style(make_record):
    part = summary_html(make_record("search"))
    assert part.strip().startswith('<div class="study study-summary">')
    assert "<html" not in part and "<script>" not in part
    rules = re.sub(r"@media[^{]*{", "", part[part.index("<style>") + 7 : part.index("</style>")])
    selectors = [name.strip() for rule in re.findall(r"([^{}]+){[^{}]*}", rules) for name in rule.split(",")]
    assert selectors and all(name.startswith(".study") for name in selectors)


def test_largest_confusions_of_a_page_are_ranked(make_tested):
    (table,) = section(make_tested(({}, {"wrong": 3})), "Confusion").tables
    assert table.rows == [("cat", CLASSES[1], "3", "75.0%")]


def test_confusion_of_two_seeds_is_summed(make_record):
    titles = [chart.title for chart in section(make_record("search"), "Confusion").charts]
    assert len(titles) == 2


def test_page_of_many_classes_draws_no_matrix(tmp_path, make_recipe):
    classes = [f"class {index}" for index in range(101)]
    manifest = make_manifest(Design("baseline", (make_recipe(),)), classes=tuple(classes))
    record = Record.create(tmp_path / "studies" / "one", manifest)
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    record.facts(plan, {"parameters": 11, "trainable_parameters": 10})
    record.epoch(plan, EpochResult(1, 2.0, 3.0, 10.0))
    confusion = np.eye(101, dtype=int)
    confusion[3, 3], confusion[3, 7] = 0, 2
    predictions = [*range(101), 7]
    predictions[3] = 7
    record.tested(plan, Evaluation(1.0, confusion.tolist(), predictions))
    record.complete(plan)
    found = section(record, "Confusion")
    assert not found.charts
    assert found.tables[0].rows == [("class 3", "class 7", "2", "100.0%")]
    assert len(describe(record, None).summary.recalls) == 10
    record.close()


@pytest.mark.parametrize(("most", "tall"), [(1, True), (40, False)])
def test_table_of_many_rows_scrolls_in_a_box(make_record, monkeypatch, most, tall):
    monkeypatch.setattr("study.report.elements.MOST_ROWS", most)
    assert ('class="wide tall"' in render([(make_record("search"), None)])) == tall
