"""Large arrays lie in files beside the journal; what reads them sees the same numbers as before."""

import json

import numpy as np
import pytest
from support.manifests import make_manifest, make_space

from study.config.plan import Plan
from study.errors import RecordError
from study.results.arrays import FOLDER, INLINE, StoredArray, find_arrays, store_arrays
from study.results.metrics import EpochResult, Evaluation, class_scores, largest_class, measure, nothing_learnt
from study.results.record import Record

SIDE = 130
"""Classes, so many that a confusion matrix is stored in a file."""
CLASSES = tuple(f"class {index}" for index in range(SIDE))


def make_confusion(seed: int = 0) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 9, (SIDE, SIDE)).tolist()


@pytest.mark.parametrize(
    "values",
    [
        [[0, 70_000, -1]] * (INLINE // 3 + 1),
        [0.1] * (INLINE + 1),
        np.linspace(0, 1, INLINE + 1, dtype=np.float32).tolist(),
        list(range(INLINE + 1)),
    ],
)
def test_stored_array_holds_the_same_numbers(tmp_path, values):
    kept = json.loads(json.dumps(store_arrays({"value": values}, tmp_path, "one")))
    found = find_arrays(kept, tmp_path)["value"]
    assert isinstance(found, StoredArray)
    assert np.asarray(found).tolist() == values
    assert found == values


def test_small_values_stay_in_the_journal(tmp_path):
    values = {"confusion": [[1] * 128] * 128, "names": ["x"] * (INLINE + 1), "loss": 1.0, "none": None}
    assert store_arrays(values, tmp_path, "one") == values
    assert not (tmp_path / FOLDER).exists()


def test_differences_of_stored_counts_keep_their_sign(tmp_path):
    first, second = (
        find_arrays(store_arrays([*map(list, np.full((SIDE, SIDE), count))], tmp_path, str(count)), tmp_path)
        for count in (np.int64(1), np.int64(3))
    )
    assert np.subtract(first, second).min() == -2


def test_missing_array_is_named_in_one_line(tmp_path):
    found = find_arrays(store_arrays(make_confusion(), tmp_path, "one"), tmp_path)
    found.file.unlink()
    with pytest.raises(RecordError, match=r"one.npz: must hold an array of the study, but is missing or damaged"):
        measure(found, None)


@pytest.mark.parametrize("content", [b"", b"PK damaged"])
def test_damaged_array_is_named_in_one_line(tmp_path, content):
    found = find_arrays(store_arrays(make_confusion(), tmp_path, "one"), tmp_path)
    found.file.write_bytes(content)
    with pytest.raises(RecordError, match=r"one.npz: must hold an array"):
        np.asarray(found)


def test_metrics_of_a_stored_confusion_are_the_same(tmp_path):
    confusion = make_confusion()
    stored = find_arrays(store_arrays(confusion, tmp_path, "one"), tmp_path)
    assert measure(stored, 0.5) == measure(confusion, 0.5)
    assert class_scores(stored) == class_scores(confusion)
    assert largest_class(stored) == largest_class(confusion)
    assert nothing_learnt(stored, CLASSES, "macro_f1") == nothing_learnt(confusion, CLASSES, "macro_f1")


def test_file_that_changed_is_measured_anew(tmp_path):
    stored = find_arrays(store_arrays(make_confusion(), tmp_path, "one"), tmp_path)
    before = measure(stored, None)
    other = make_confusion(1)
    store_arrays(other, tmp_path, "one")
    assert measure(stored, None) == measure(other, None) != before


@pytest.fixture
def record(tmp_path):
    """A search of one trial with many classes, validated and tested."""
    manifest = make_manifest(space=make_space(), classes=CLASSES)
    record = Record.create(tmp_path / "studies" / "one", manifest)
    record.add([Plan(None, "search", make_space().base, 0)])
    yield record
    record.close()


def run(record: Record) -> tuple[EpochResult, Evaluation]:
    """Report an epoch and a test of the next trial, and return both as they were reported."""
    plan = record.next_trial()
    result = EpochResult(1, 2.0, 3.0, 10.0, val_loss=1.0, val_confusion=make_confusion())
    test = Evaluation(1.0, make_confusion(1), [*range(INLINE + 1)], losses=[0.1] * (INLINE + 1))
    record.epoch(plan, result)
    record.tested(plan, test)
    return result, test


def test_record_of_many_classes_reads_back_its_results(record):
    result, test = run(record)
    (trial,) = Record.read(record.directory).trials()
    assert trial.epochs == (result,)
    assert trial.test == test
    assert trial.epochs[0].val_metrics == result.val_metrics


def test_journal_of_many_classes_stays_small(record):
    before = (record.directory / "journal.log").stat().st_size
    run(record)
    assert (record.directory / "journal.log").stat().st_size - before < 3_000
    names = {file.name for file in (record.directory / FOLDER).iterdir()}
    assert names == {
        "0-epoch-1-val_confusion.npz",
        "0-test-confusion.npz",
        "0-test-losses.npz",
        "0-test-predictions.npz",
    }


@pytest.mark.parametrize(
    ("changes", "large"),
    [({"classes": CLASSES[:128]}, False), ({"classes": CLASSES[:129]}, True), ({"test_images": INLINE + 1}, True)],
)
def test_earlier_versions_refuse_records_with_arrays(changes, large):
    assert (make_manifest(**changes).to_dict()["format"] > 2) == large


def test_renamed_study_finds_its_arrays(record):
    _, test = run(record)
    record.close()
    moved = record.directory.rename(record.directory.with_name("two"))
    assert Record.read(moved).trials()[0].test == test


def test_adopted_results_are_copied_into_the_study(record, tmp_path):
    run(record)
    donor = record.trials()[0]
    other = Record.create(tmp_path / "studies" / "two", record.manifest)
    other.add([Plan(None, "search", donor.plan.recipe, donor.plan.seed)])
    other.adopt(other.trials()[0].plan, donor, "one")
    other.close()
    adopted = Record.read(other.directory).trials()[0].test
    assert adopted == donor.test
    assert adopted.confusion.file.is_relative_to(other.directory)


def test_note_with_a_large_array_reads_back(record):
    labels = [index % SIDE for index in range(INLINE + 1)]
    record.note("test_labels", labels)
    assert Record.read(record.directory).noted("test_labels") == labels
