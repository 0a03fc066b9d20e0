"""A refit of the baseline that an earlier study ran is copied, if nothing could make it come out otherwise."""

from dataclasses import replace

import pytest
from support.manifests import make_manifest, make_space, small_recipe
from support.results import TEST

from study.config.plan import Plan
from study.results.ledger import count_looks
from study.results.metrics import EpochResult
from study.results.record import Record
from study.tuning.reuse_refits import reuse_refits

BASELINE = small_recipe()
FACTS = {"arithmetic": "a machine", "precision": "fp32", "threads": 2}


class Listener:
    """Keeps the keys of the trials that it hears of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_start(self, plan: Plan) -> None:
        self.heard.append(plan.key)

    def on_change(self, plan: Plan) -> None:
        self.heard.append(plan.key)


@pytest.fixture
def make_study(tmp_path):
    """Return a function that makes a study whose search has run, and whose refits of three seeds wait or have run."""
    records = []

    def make(name: str, *, refitted: bool = False, facts=FACTS, recipe=BASELINE, seeds=(5, 6, 7), **changes) -> Record:
        record = Record.create(tmp_path / name, make_manifest(space=make_space(), **changes))
        records.append(record)
        record.add([Plan(None, "search", recipe, 0)])
        finish(record, facts)
        record.add(Plan(None, "final", planned, seed) for seed in seeds for planned in (recipe, small_recipe(lr=0.5)))
        for _ in range(6 if refitted else 0):
            finish(record, facts)
        return record

    yield make
    for record in records:
        record.close()


def finish(record: Record, facts: dict[str, object]) -> None:
    plan = record.next_trial()
    record.facts(plan, facts)
    for epoch in (1, 2):
        record.epoch(plan, EpochResult(epoch, 1.0, 3.0, 1.0, val_loss=1.0, val_confusion=[[1, 0], [0, 1]]))
    if plan.stage == "final":
        record.open_test(plan)
        record.tested(plan, replace(TEST, loss=float(plan.seed)))
    record.complete(plan)


def reused(record: Record) -> dict[str, str | None]:
    """Return the complete refits by key, each with the study that ran it."""
    reuse_refits(record, BASELINE, [])
    return {trial.plan.key: trial.reused_from for trial in record.finals() if trial.state == "complete"}


def test_baseline_refits_of_later_seeds_are_reused(make_study):
    make_study("one", refitted=True)
    record = make_study("two")
    assert reused(record) == {"final-2": "one", "final-4": "one"}
    assert [trial.test.loss for trial in record.finals() if trial.test] == [6.0, 7.0]


def test_reused_refit_costs_no_time_and_no_look(make_study):
    make_study("one", refitted=True)
    record = make_study("two")
    reused(record)
    trial = record.finals()[2]
    assert (trial.seconds, trial.tests_opened, len(trial.epochs), trial.training_s) == (0, 0, 2, 6)
    assert (count_looks(record).own, count_looks(record).others) == (0, 6)


def test_reused_refit_names_the_study_that_ran_it(make_study):
    make_study("one", refitted=True)
    between = make_study("two")
    reused(between)
    record = make_study("zero")
    assert set(reused(record).values()) == {"one"}


@pytest.mark.parametrize(
    "changes",
    [
        {"facts": {**FACTS, "arithmetic": "another machine"}},
        {"facts": {**FACTS, "precision": "bf16"}},
        {"facts": {**FACTS, "gradients": "fp32 in depthwise convolutions"}},
        {"facts": {**FACTS, "threads": 4}},
        {"recipe": small_recipe(lr=0.25)},
        {"seeds": (8, 9, 10)},
        {"data_fingerprint": "e" * 16},
        {"split_fingerprint": "e" * 16},
        {"weights_digests": {"resnet18": "another file"}},
        {"versions": {"torch": "3"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_refit_is_not_reused_where_anything_differs(make_study, changes):
    make_study("one", refitted=True, **changes)
    assert reused(make_study("two")) == {}


def test_refit_is_not_reused_where_machines_differ(make_study):
    make_study("one", refitted=True)
    record = make_study("two")
    record.facts(record.next_trial(), {**FACTS, "threads": 4})
    assert reused(record) == {}


def test_failed_and_waiting_refits_are_not_reused(make_study):
    make_study("one")
    assert reused(make_study("two")) == {}


def test_listeners_hear_of_each_reused_refit(make_study):
    make_study("one", refitted=True)
    listener = Listener()
    reuse_refits(make_study("two"), BASELINE, [listener])
    assert listener.heard == ["final-2", "final-2", "final-4", "final-4"]


def test_reuse_survives_reopening_and_runs_the_rest(make_study):
    make_study("one", refitted=True)
    record = make_study("two")
    reused(record)
    record.close()
    again = Record.open(record.directory)
    assert [again.next_trial().key for _ in range(4)] == ["final-0", "final-1", "final-3", "final-5"]
    again.close()
