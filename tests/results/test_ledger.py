"""Openings of the same test images are counted over all studies of a directory."""

import shutil
from pathlib import Path

import pytest
from support.manifests import make_manifest, make_space, small_recipe

from study.config.manifest import Found
from study.config.plan import Plan
from study.results.ledger import Looks, count_looks, earlier_p_values
from study.results.record import Record

RECORDS = Path(__file__).parents[1] / "records"


@pytest.fixture
def make_study(tmp_path):
    """Return a function that makes a search of the name, opens its test images and notes a verdict with the p-value."""

    def make(name: str, *, opened: int = 0, p: float | None = None, **changes: object) -> Record:
        record = Record.create(tmp_path / name, make_manifest(space=make_space(), **changes))
        record.add(Plan(None, "final", small_recipe(), seed) for seed in range(opened))
        for _ in range(opened):
            record.open_test(record.next_trial())
        if p is not None:
            record.note("verdict", {"comparison": {"difference": {"mean": 0.1, "p": p}}})
        record.close()
        return record

    return make


def test_looks_of_a_lone_study_are_its_own(make_study):
    assert count_looks(make_study("one", opened=2)) == Looks(own=2, others=0, studies=0)


def test_looks_of_all_studies_with_the_same_test_images_count(make_study):
    make_study("one", opened=2)
    make_study("two", opened=3)
    make_study("unopened")
    assert count_looks(make_study("three", opened=1)) == Looks(own=1, others=5, studies=2)


@pytest.mark.parametrize(
    ("changes", "studies"),
    [
        ({"source": "/other"}, 0),
        ({"seed": 1, "found": Found(test_fraction=0.2)}, 0),
        ({"seed": 1, "fraction": 0.5}, 0),
        ({"source": "/other", "seed": 1, "test_fingerprint": "t"}, 1),
        ({"test_fingerprint": "at another size"}, 1),
        ({"seed": 1, "test_fingerprint": "at another size"}, 1),
    ],
    ids=["other images", "drawn", "other part", "other training images", "another stored size", "given, other seed"],
)
def test_looks_at_other_test_images_do_not_count(make_study, changes, studies):
    make_study("one", opened=2, **{"data_fingerprint": "e" * 16, **changes})
    assert count_looks(make_study("two", test_fingerprint="t")).studies == studies


def test_looks_of_a_trial_that_started_anew_count_twice(make_study):
    record = make_study("one", opened=1)
    record = Record.open(record.directory)
    record.open_test(record.next_trial())
    record.close()
    assert count_looks(record).own == 2


def test_looks_of_an_old_study_count(make_study, tmp_path):
    shutil.copytree(RECORDS / "search", tmp_path / "search")
    old = Record.read(tmp_path / "search")
    record = make_study("one", data_fingerprint=old.manifest.data_fingerprint)
    assert count_looks(record).others == sum(trial.tests_opened for trial in old.finals()) == 4
    assert earlier_p_values(Record.open(record.directory)) == [1.0]


@pytest.mark.parametrize("content", [b"", b"no json\n", b'{"user_attr":{"manifest":{}}}\n'])
def test_looks_of_a_damaged_study_are_left_out(make_study, tmp_path, content):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "journal.log").write_bytes(content)
    assert count_looks(make_study("one")).studies == 0


def test_earlier_p_values_stay_as_they_were_noted(make_study):
    make_study("one", p=0.03)
    make_study("without a verdict")
    record = Record.open(make_study("two").directory)
    assert earlier_p_values(record) == [0.03]
    make_study("three", p=0.04)
    record.close()
    assert earlier_p_values(Record.read(record.directory)) == [0.03]
