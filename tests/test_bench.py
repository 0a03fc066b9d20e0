"""The benchmark's own parts: what it asks for, how it judges, and that any GPU machine can run its first."""

import subprocess
import sys

import pytest

from study import bench
from study.bench import build_parser, describe_machine, format_tables, judge
from study.bench_search import DEPTHS, make_recipes
from study.bench_training import ROUNDS, Figure, measure_augmentation, measure_training


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


def test_only_what_was_measured_is_judged():
    assert judge([], on_gpu=False) == []


def test_tables_say_which_goal_was_met():
    found = figures(as_written=10.0, empty_store=30.0)
    text = format_tables(found, judge(found, on_gpu=False), describe_machine())
    assert "| 1 | resnet18, empty store / as written | 3 | ≥ 4 | not met |" in text
    assert "torch" in text.splitlines()[0]


def test_recipes_share_the_depths_equally_and_differ():
    recipes = make_recipes()
    assert sorted(recipe.unfreeze_depth for recipe in recipes) == [depth for depth in DEPTHS for _ in range(3)]
    assert len({recipe.lr for recipe in recipes}) == 12


@pytest.mark.parametrize("parts", ["0", "1,6", "all"])
def test_parts_that_there_are_not_are_refused(parts, capsys):
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["--parts", parts])
    assert "--parts" in capsys.readouterr().err


def test_every_side_of_part_1_is_measured_in_each_round(tmp_path):
    found = measure_training("resnet18", tmp_path, images=64, image_size=32)
    assert [figure.name.partition(", ")[2] for figure in found] == [
        "as written",
        "as written, memory kept",
        "empty store",
        "full store",
        "bare suffix",
    ]
    assert all(len(figure.values) == ROUNDS and min(figure.values) > 0 for figure in found)
    assert list(tmp_path.iterdir()) == []


def test_augmentation_is_measured_both_ways():
    one_by_one, ours = measure_augmentation(64)
    assert min(one_by_one.values + ours.values) > 0


def test_parts_1_and_4_need_neither_ray_nor_mlflow_nor_optuna():
    code = (
        "import sys\n"
        "for name in ('ray', 'mlflow', 'optuna'): sys.modules[name] = None\n"
        "import study.bench, study.bench_training"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_main_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--parts", "4", "--json", "out.json"]) == 0
    assert "AutoAugment" in capsys.readouterr().out
    assert '"goals"' in (tmp_path / "out.json").read_text()
