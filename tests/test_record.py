"""The journal holds each trial once, with everything that came of it, for whoever opens it next."""

import json

import optuna
import pytest

from study.errors import RecordError
from study.record import Record
from study.training import EpochResult, Evaluation

EPOCH = EpochResult(1, train_loss=2.0, epoch_s=3.0, images_per_s=10.0)
TEST = Evaluation(loss=1.0, confusion=[[3, 1], [0, 4]], predictions=[0, 0, 0, 1, 1, 1, 1, 1])


@pytest.fixture(autouse=True)
def _quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def record(tmp_path):
    record = Record(tmp_path / "studies" / "one", "one", {"data": "digits"})
    yield record
    record.close()


def test_next_trial_gives_each_planned_trial_once_in_order(record, make_recipe):
    recipes = [make_recipe(lr=lr) for lr in (0.1, 0.2, 0.3)]
    record.add(("baseline", recipe, 5) for recipe in recipes)
    plans = [record.next_trial() for _ in range(4)]
    assert [plan.recipe for plan in plans[:3]] == recipes
    assert [plan.number for plan in plans[:3]] == [0, 1, 2]
    assert {plan.seed for plan in plans[:3]} == {5}
    assert plans[3] is None


def test_trial_returns_what_was_reported(record, make_recipe):
    record.add([("baseline", make_recipe(), 0)])
    number = record.next_trial().number
    record.facts(number, {"device": "CPU"})
    record.epoch(number, EPOCH)
    record.tested(number, TEST)
    record.complete(number)
    trial = record.trial(number)
    assert (trial.epochs, trial.test, trial.facts) == ((EPOCH,), TEST, {"device": "CPU"})
    assert (trial.state, trial.value) == ("complete", 7 / 8)


def test_complete_takes_the_last_validation_where_there_is_no_test(record, make_recipe):
    record.add([("search", make_recipe(), 0)])
    number = record.next_trial().number
    for epoch, right in ((1, 3), (2, 1)):
        record.epoch(number, EpochResult(epoch, 2.0, 3.0, 10.0, val_loss=1.0, val_confusion=[[right, 4 - right]] * 2))
    record.complete(number)
    assert record.trial(number).value == 0.5


def test_complete_without_a_result_is_a_failure(record, make_recipe):
    record.add([("baseline", make_recipe(), 0)])
    number = record.next_trial().number
    record.complete(number)
    assert record.trial(number).state == "failed"
    assert record.trial(number).reason == "it ended without a result."


def test_an_epoch_told_twice_counts_once(record, make_recipe):
    record.add([("baseline", make_recipe(), 0)])
    number = record.next_trial().number
    record.epoch(number, EPOCH)
    record.epoch(number, EPOCH)
    assert record.trial(number).epochs == (EPOCH,)


def test_the_journal_is_one_that_optuna_opens(record, make_recipe):
    record.add([("baseline", make_recipe(), 0)])
    number = record.next_trial().number
    record.tested(number, TEST)
    record.complete(number)
    backend = optuna.storages.journal.JournalFileBackend(str(record.directory / "journal.log"))
    study = optuna.load_study(study_name="one", storage=optuna.storages.JournalStorage(backend))
    assert study.best_value == 7 / 8


def test_the_journal_is_text_and_holds_no_pickle(record, make_recipe):
    record.add([("baseline", make_recipe(), 0)])
    for line in (record.directory / "journal.log").read_text().splitlines():
        json.loads(line)


def test_record_refuses_a_name_that_exists(record, tmp_path):
    with pytest.raises(RecordError, match=r"a study named 'one' exists. Choose another --name"):
        Record(tmp_path / "studies" / "one", "one", {})


def test_record_refuses_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "studies").write_text("in the way")
    with pytest.raises(RecordError, match=r"cannot be written"):
        Record(tmp_path / "studies" / "one", "one", {})


def test_record_gives_each_study_a_name_of_its_own_for_mlflow(record, tmp_path):
    other = Record(tmp_path / "studies" / "two", "two", {})
    assert other.manifest["uid"] != record.manifest["uid"]
    other.close()
