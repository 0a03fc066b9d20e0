"""The benchmark's own parts: what it asks for, how it judges, and that any GPU machine can run its first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from study.bench import large_data, orchestration
from study.bench.__main__ import build_parser, describe_machine, format_tables, judge, main
from study.bench.orchestration import DEPTHS, make_recipes
from study.bench.training import ROUNDS, Figure
from study.compute.hardware import choose_hardware

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, SQLAlchemy and what they import


def figures(**values):
    return [Figure(1, f"resnet18, {name.replace('_', ' ')}", "images/s", [value]) for name, value in values.items()]


def test_a_figure_is_the_median_of_its_values():
    assert Figure(1, "one", "s", [9.0, 1.0, 2.0]).median == 2.0


def test_goals_are_ratios_within_one_run():
    goals = judge(figures(as_written=10.0, empty_store=45.0, full_store=90.0, bare_suffix=100.0), on_gpu=False)
    assert [(goal.value, goal.met) for goal in goals] == [(4.5, True), (9.0, False), (0.9, True)]


def test_goals_on_a_gpu_are_higher():
    goals = judge(figures(as_written=10.0, empty_store=45.0), on_gpu=True)
    assert [(goal.bound, goal.met) for goal in goals] == [(10, False)]


def test_goals_of_growth_compare_the_last_mark_with_the_first():
    names = {"driver at 10 trials": 500, "driver at 1,000 trials": 650, "worker at 10 trials": 300}
    names |= {"worker at 1,000 trials": 310, "a trial, 1 to 10": 0.3, "a trial, 100 to 1,000": 0.36}
    goals = judge([Figure(5, name, "", [value]) for name, value in names.items()], on_gpu=False)
    assert [goal.met for goal in goals] == [False, True, True]


def test_goals_of_large_data_are_differences_and_ratios():
    values = {
        "second start, 100 images": (0.5, 100),
        "second start, 10,000 images": (1.4, 10_000),
        "decoding, ours": (95, 1),
        "decoding, bare Pillow threads": (100, 1),
        "training, images in memory": (100, 1),
        "training, images on disk": (99, 1),
        "memory of a search, 5,000 images": (1000, 5000),
        "memory of a search, 40,000 images": (1140, 40_000),
    }
    goals = judge([Figure(6, name, "", [value], images) for name, (value, images) in values.items()], on_gpu=False)
    assert [(round(goal.value, 2), goal.met) for goal in goals] == [
        (0.95, True), (0.99, True), (0.9, True), (4.0, False),
    ]  # fmt: skip


@pytest.mark.slow
def test_large_data_can_be_measured_by_every_task(tmp_path, capsys):
    files = large_data.make_files(tmp_path / "files", 120, (256, 256))
    for task in large_data.TASKS:
        large_data.main([task, str(files), str(tmp_path / ("other" if task == "decode" else "store"))])
        assert float(capsys.readouterr().out) > 0, task


@pytest.mark.slow
def test_memory_of_a_study_is_measured_while_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(large_data, "SETTLED_S", 0.0)
    files = large_data.make_files(tmp_path / "files", 1000, (32, 32))
    assert large_data.measure_study_memory(tmp_path, files, "search") > 10**8


def test_only_what_was_measured_is_judged():
    assert judge([], on_gpu=False) == []


def test_tables_say_which_goal_was_met():
    found = figures(as_written=10.0, empty_store=30.0)
    text = format_tables(found, judge(found, on_gpu=False), describe_machine(choose_hardware("auto")), "2026-01-31")
    assert "| 1 | resnet18, empty store / as written | 3 | ≥ 4 | not met |" in text
    assert text.startswith("2026-01-31: ")
    assert "torch" in text.splitlines()[0]


def test_tables_say_of_how_much_and_how_often():
    found = [Figure(2, "ours", "s", [9.0, 1.0, 2.0], images=4096, trials=12)]
    assert "| 2 | ours | 4,096 images, 12 trials | 2 | 3 | 9 1 2 | s |" in format_tables(
        found, [], describe_machine(choose_hardware("auto")), "2026-01-31"
    )


def test_recipes_share_the_depths_equally_and_differ():
    recipes = make_recipes()
    assert sorted(recipe.unfreeze_depth for recipe in recipes) == [depth for depth in DEPTHS for _ in range(3)]
    assert len({recipe.lr for recipe in recipes}) == 12


@pytest.mark.parametrize("parts", ["0", "1,8", "all"])
def test_parts_that_there_are_not_are_refused(parts, capsys):
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["--parts", parts])
    assert "--parts" in capsys.readouterr().err


@pytest.mark.slow
def test_parts_1_and_4_need_no_ray_mlflow_or_optuna(tmp_path):
    """In the processes that they start, too."""
    blocked, stores = tmp_path / "blocked", tmp_path / "stores"
    stores.mkdir()
    for name in ("ray", "mlflow", "optuna"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError('blocked')")
    code = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path; import study.bench.__main__\n"
        "from study.bench.training import measure_augmentation, measure_training\n"
        "found = measure_training('resnet18', Path(sys.argv[1]), images=8, image_size=32) + measure_augmentation(8)\n"
        "print(json.dumps([asdict(figure) for figure in found]))"
    )
    path = os.pathsep.join([str(blocked), str(Path(orchestration.__file__).parents[2])])
    command, environment = [sys.executable, "-c", code, str(stores)], {**os.environ, "PYTHONPATH": path}
    seen = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr
    found = [Figure(**figure) for figure in json.loads(seen.stdout)]
    assert [figure.name for figure in found] == [
        "resnet18, as written",
        "resnet18, as written, memory kept",
        "resnet18, empty store",
        "resnet18, full store",
        "resnet18, bare suffix",
        "resnet18, probe",
        "resnet18, bare forward",
        "torchvision, one by one",
        "ours",
    ]
    assert all(figure.n == ROUNDS and min(figure.values) > 0 and figure.images == 8 for figure in found)
    assert list(stores.iterdir()) == []


@pytest.fixture
def one_round(monkeypatch):
    monkeypatch.setattr(orchestration, "ROUNDS", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("one_round")
def test_part_2_measures_both_sides(tmp_path, make_recipe):
    recipes = [make_recipe(epochs=1, unfreeze_depth=depth) for depth in (0, 1)]
    found = orchestration.measure_search(tmp_path, images=16, recipes=recipes)
    assert [(figure.name, figure.n, figure.trials) for figure in found] == [("stock Ray Tune", 1, 2), ("ours", 1, 2)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_round")
def test_part_3_measures_every_side(tmp_path):
    found = orchestration.measure_orchestration(tmp_path, trials=3, stock_trials=1)
    assert [(figure.name, figure.trials) for figure in found] == [
        ("stock Ray Tune", 1),
        ("ours", 3),
        ("ours with MLflow", 3),
    ]
    assert all(figure.median > 0 for figure in found)


@pytest.mark.slow
def test_part_5_measures_both_processes_at_every_mark(tmp_path):
    found = {figure.name: figure.median for figure in orchestration.measure_growth(tmp_path, marks=(2, 3, 4))}
    for mark in (2, 3, 4):
        assert found[f"driver at {mark} trials"] > 10
        assert found[f"worker at {mark} trials"] > 10


@pytest.mark.slow
def test_main_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--parts", "4", "--json", "out.json"]) == 0
    assert "AutoAugment" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert {(figure["n"], figure["images"], figure["trials"]) for figure in written["figures"]} == {(3, 5000, None)}
    assert written["goals"]
