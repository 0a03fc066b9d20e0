"""Part 7: what a side found in time, how the sides are compared, and that each side runs."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from study.bench import answer, stock
from study.bench.__main__ import judge, main
from study.bench.answer import EMPTY, RAY, SECOND, SIDES, Extent, Trajectory, compare, find_lack, in_time, most_below
from study.compute.hardware import choose_hardware
from study.data.sources import load_dataset
from study.data.splits import split_validation
from study.models.classifier import build
from study.results.record import Record
from study.verdict.judge import rank

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow, SQLAlchemy and what they import
TINY = Extent(fraction=1.0, image_size=32, epochs=1, trials=2, seconds=600, seeds=(0,))


def trajectory(*reports, test_accuracy=0.5):
    return Trajectory(reports, trials=1, test_accuracy=test_accuracy)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A directory with the weights of an untrained network, and with 40 images of ten classes."""
    shared = tmp_path_factory.mktemp("shared")
    weights = shared / answer.WEIGHTS
    weights.parent.mkdir()
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    generator = np.random.default_rng(0)
    for number in range(40):
        file = shared / answer.IMAGES / ("test" if number < 10 else "train") / f"c{number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    return shared


@pytest.fixture
def task(shared, tmp_path):
    return answer.write_task(tmp_path, TINY, 0, choose_hardware("fp32"), shared)


def test_the_best_accuracy_never_falls():
    run = trajectory((1.0, 0.2), (2.0, 0.6), (3.0, 0.4))
    assert [run.best_at(seconds) for seconds in (0.5, 1, 2, 3)] == [0.0, 0.2, 0.6, 0.6]


def test_an_accuracy_is_reached_by_its_first_epoch():
    run = trajectory((1.0, 0.2), (2.0, 0.6), (3.0, 0.7))
    assert (run.seconds_to(0.6), run.seconds_to(0.8)) == (2.0, math.inf)


def test_results_after_the_time_do_not_count():
    run = in_time([(1012.0, 0.9), (1003.0, 0.5)], started=1000.0, seconds=10, trials=2, test_accuracy=0.7)
    assert run.reports == ((3.0, 0.5),)


def test_a_lag_counts_after_the_first_minute_only():
    ahead = trajectory((30.0, 0.5), (70.0, 0.6), (90.0, 0.8))
    assert most_below(trajectory((59.0, 0.5), (65.0, 0.7)), ahead) == pytest.approx(0.1)
    assert most_below(trajectory((60.0, 0.5), (70.0, 0.8)), ahead) == 0


def test_goals_compare_the_seconds_to_one_accuracy():
    found = {side: [trajectory((50.0, 0.8))] for side in SIDES}
    found[EMPTY], found[SECOND] = [trajectory((10.0, 0.8))], [trajectory((10.0, 0.7))]
    goals = [goal for goal in judge(compare(found, replace(TINY, seconds=100)), on_gpu=False) if goal.part == 7]
    assert [(goal.value, goal.met) for goal in goals] == [
        (5.0, True), (0.0, False), (0.0, True), (pytest.approx(10), False),
    ]  # fmt: skip


def test_figures_hold_a_value_for_each_seed():
    found = {side: [trajectory((50.0, 0.8)), trajectory((40.0, 0.7))] for side in SIDES}
    figures = {figure.name: figure.values for figure in compare(found, replace(TINY, seconds=100))}
    assert figures[f"seconds to the best of stock Ray Tune, {RAY}"] == [50.0, 40.0]
    assert figures[f"best validation accuracy after 30 s, {RAY}"] == [0.0, 0.0]
    assert figures[f"best validation accuracy after 100 s, {RAY}"] == [80.0, 70.0]


def test_a_picture_is_drawn_even_of_a_side_without_results():
    assert answer.draw({RAY: [trajectory((5.0, 0.8))], EMPTY: [trajectory()]}, TINY).startswith(b"\x89PNG")


def test_lacking_files_are_named(shared, tmp_path):
    assert find_lack(shared) is None
    lack = find_lack(tmp_path)
    assert answer.WEIGHTS in lack and answer.IMAGES in lack


def test_the_part_is_left_out_without_its_files(monkeypatch, capsys):
    monkeypatch.setattr(answer, "find_lack", lambda: "needs something")
    assert main(["--parts", "7"]) == 0
    assert "left out: part 7 needs something" in capsys.readouterr().err


def test_stock_sides_get_the_split_of_ours(shared, task, tmp_path):
    dataset = load_dataset(str(shared / answer.IMAGES), fraction=1.0, seed=0, image_size=32, data_dir=tmp_path)
    train, validation = split_validation(dataset, fraction=0.1, seed=0)
    parts = stock.load_parts(task)
    for name, images in (("train", train), ("validation", validation), ("test", dataset.test)):
        assert np.array_equal(parts[name][0].numpy(), images.pixels), name
        assert parts[name][1].tolist() == images.labels.tolist()


@pytest.mark.parametrize("depth", [0, 1, 3, 5])
def test_stock_sides_train_the_layers_of_ours(task, depth):
    theirs = stock.build_network(task, depth)
    ours = build(answer.MODEL, classes=10, unfreeze_depth=depth, pretrained=None, seed=0).network
    assert {name for name, tensor in theirs.named_parameters() if tensor.requires_grad} == {
        name for name, tensor in ours.named_parameters() if tensor.requires_grad
    }


def test_stock_training_keeps_frozen_layers_as_they_were(task, monkeypatch):
    made = []
    build_network = stock.build_network
    monkeypatch.setattr(stock, "build_network", lambda *given: made.append(build_network(*given)) or made[-1])
    parts = stock.load_parts(task)
    config = {"unfreeze_depth": 1, "lr": 1e-3, "batch_size": 16}
    held_out = parts["validation"]
    (accuracy,) = stock.fine_tune(task, config, parts["train"], held_out)
    before, after = build_network(task, 1).state_dict(), made[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert accuracy in [right / len(held_out[1]) for right in range(len(held_out[1]) + 1)]
    assert changed and all(
        name.startswith(("blocks.5", "blocks.6", "conv_head", "bn2", "classifier")) for name in changed
    )


@pytest.mark.slow
@pytest.mark.parametrize("library", ["optuna", "ray"])
def test_stock_side_reports_every_epoch(task, tmp_path, library):
    run = answer.run_stock(library, tmp_path, task)
    assert (len(run.reports), run.trials) == (2, 2)
    assert 0 < run.reports[0][0] < run.reports[1][0]


@pytest.mark.slow
def test_second_study_finds_what_the_first_found(shared, tmp_path):
    """What it tries again, the baseline and the best recipe at least, gives the same results again."""
    extent = replace(TINY, trials=4)  # a third of those after the baseline may be recipes of the first study
    answer.write_task(tmp_path, extent, 0, choose_hardware("fp32"), shared)
    for name in ("first", "second"):
        assert answer.run_ours(name, tmp_path, extent, 0, shared).trials == 4
    records = (Record.read(tmp_path / "mlruns" / "studies" / name) for name in ("first", "second"))
    first, second = ({trial.plan.recipe: trial for trial in record.trials()} for record in records)
    complete = [recipe for recipe, trial in first.items() if trial.state == "complete"]
    assert {complete[0], max(complete, key=lambda recipe: rank(first[recipe]))} <= {*second}
    for recipe in first.keys() & second.keys():
        ours, theirs = first[recipe].epochs[0], second[recipe].epochs[0]
        assert (ours.val_loss, ours.val_confusion) == (theirs.val_loss, theirs.val_confusion)
