"""The report holds what the record says, and nothing that a browser would have to fetch or could run."""

import re

import numpy as np
import pytest

from study.data import Dataset
from study.record import Record
from study.report import main, render, write_report
from study.search_space import Budget, Float, Pruner, Resources, SearchSpace
from study.training import EpochResult, Evaluation

MANIFEST = {
    "data": "pets", "source": "pets", "data_dir": "nowhere", "fraction": 1.0, "seed": 0, "image_size": 32,
    "classes": ["cat", "<script>alert(1)</script>"], "train_images": 16, "val_images": 4, "test_images": 8,
    "data_fingerprint": "d" * 16, "split_fingerprint": "s" * 16, "weights": "none", "versions": {"torch": "2"},
}  # fmt: skip


def result(epoch, right):
    return EpochResult(epoch, 2.0 / epoch, 3.0, 10.0, val_loss=1.0, val_confusion=[[right, 2 - right], [0, 2]])


def evaluation(wrong):
    predictions = [0] * (4 - wrong) + [1] * (4 + wrong)
    return Evaluation(1.0, [[4 - wrong, wrong], [0, 4]], predictions)


@pytest.fixture
def dataset(make_images):
    train, test = make_images(16, classes=2), make_images(8, classes=2, seed=1)
    test = type(test)(test.pixels, np.repeat([0, 1], 4).astype(np.int64))
    return Dataset("pets", tuple(MANIFEST["classes"]), train, test, 1.0)


@pytest.fixture
def make_record(tmp_path, make_recipe):
    """A record of two tested models, or of a search of three trials, one pruned, with a verdict of one seed."""
    opened = []

    def make(kind, name="one"):
        directory = tmp_path / "mlruns" / "studies" / name
        if kind == "baseline":
            record = Record.create(directory, MANIFEST)
            record.add(("baseline", make_recipe(model=model), 0) for model in ("resnet18", "vgg11"))
            for wrong in (2, 1):
                finish(record, wrong)
        else:
            space = SearchSpace(
                "small", tmp_path, {"lr": Float(1e-5, 1.0)}, make_recipe(), Budget(3), Pruner("none"), Resources()
            )
            record = Record.create(directory, MANIFEST, space=space)
            record.add([("search", space.base, 0)])
            for right in (1, 2):
                plan = record.next_trial()
                for epoch in (1, 2):
                    record.epoch(plan, result(epoch, right))
                record.complete(plan)
            pruned = record.next_trial()
            record.epoch(pruned, result(1, 0))
            record.prune(pruned, "pruned")
            record.add(("final", trial.plan.recipe, 7) for trial in record.trials()[:2])
            for wrong in (2, 0):
                finish(record, wrong)
            record.note("test_labels", [0] * 4 + [1] * 4)
            record.note("importances", {"lr": 1.0})
        opened.append(record)
        return record

    yield make
    for record in opened:
        record.close()


def finish(record, wrong):
    plan = record.next_trial()
    record.facts(plan, {"parameters": 11, "trainable_parameters": 8_398_858})
    for epoch in (1, 2):
        record.epoch(plan, EpochResult(epoch, 2.0 / epoch, 3.0, 10.0))
    record.tested(plan, evaluation(wrong))
    record.complete(plan)


@pytest.fixture
def baseline(make_record):
    return make_record("baseline")


def test_report_of_a_baseline_answers_the_assignments_questions(baseline, dataset):
    page = render([(baseline, dataset)])
    for expected in (
        "vgg11 is right about 87.50% of the test images, resnet18 about 75.00%", "8,398,858", "Hardest to tell apart",
        "as it sees them", "as stored", "million multiply-adds", "What the models were given", "95 % interval",
    ):  # fmt: skip
        assert expected in page
    assert page.count("data:image/png;base64,") >= 7


def test_report_of_a_search_gives_verdict_importances_and_every_trial(make_record, dataset):
    page = render([(make_record("search"), dataset)])
    for expected in ("One seed tells of these two", "lr 100%", "optimization history", "slices along", "#2", "pruned"):
        assert expected in page


def test_report_needs_nothing_from_elsewhere_and_runs_nothing_that_it_was_given(baseline, dataset):
    page = render([(baseline, dataset)])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)


def test_report_without_images_says_so(baseline):
    assert "The images are no longer where the study found them." in render([(baseline, None)])


def test_report_of_a_study_that_came_to_nothing_is_one_all_the_same(tmp_path, make_recipe):
    record = Record.create(tmp_path / "studies" / "one", MANIFEST)
    record.add([("baseline", make_recipe(), 0)])
    record.fail(record.next_trial(), "train_loss: must stay finite")
    page = render([(record, None)])
    assert "No trial was completed." in page
    assert "train_loss: must stay finite" in page
    record.close()


def test_several_studies_stand_side_by_side(make_record, dataset):
    page = render([(make_record("baseline"), dataset), (make_record("search", "two"), dataset)])
    assert "Side by side" in page
    assert page.index("Side by side") < page.index("How right they are")


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
    with pytest.raises(SystemExit, match="2"):
        main(["onee"])
    assert "Did you mean 'one'?" in capsys.readouterr().err
