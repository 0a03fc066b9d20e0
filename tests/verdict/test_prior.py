"""Recipes of earlier studies: which ones a new search tries first, and which studies are left out."""

import dataclasses
import os

import pytest
from support.manifests import make_manifest, make_space, small_recipe

from study.config.manifest import Manifest
from study.config.plan import Design, Plan
from study.config.search_space import Budget, Categorical, Float, Int
from study.errors import ConfigError
from study.results.metrics import EpochResult
from study.results.record import Record
from study.verdict.prior import describe_proposals, find_proposals, take_turns
from study.verdict.screen import plan_first_trials

BASE = small_recipe(epochs=1)
SPACE = make_space(base=BASE, domains={"lr": Float(1e-5, 1.0, log=True)}, budget=Budget(10))


def new_search(*prior: str, space=SPACE, **changes: object) -> Design:
    return dataclasses.replace(Design("search", (BASE,), space, 1, prior=prior or ("auto",)), **changes)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes an earlier search whose trials, by their rates, had so many of 100 images right."""

    def make(name: str, right: dict[float, int | None], *, ended: bool = True, space=SPACE, **changes: object) -> None:
        design = Design("search", (BASE,), space, 1, **changes)
        record = Record.create(tmp_path / "studies" / name, make_manifest(design))
        record.add(Plan(None, "search", dataclasses.replace(space.base, lr=lr), 0) for lr in right)
        for count in right.values():
            plan = record.next_trial()
            if count is None:
                record.fail(plan, "out of memory.")
                continue
            confusion = [[count, 100 - count], [0, 0]]
            record.epoch(plan, EpochResult(1, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=confusion))
            record.complete(plan)
        if ended:
            record.note("verdict", {})
        record.close()
        moment = len(list((tmp_path / "studies").iterdir()))
        os.utime(tmp_path / "studies" / name / "journal.log", (moment, moment))

    return make


def found(design: Design, mlruns) -> list[tuple[str, int, float]]:
    proposals, _ = find_proposals(design, mlruns)
    return [(proposal.study, proposal.trial, proposal.values["lr"]) for proposal in proposals]


def test_proposals_are_the_best_of_each_study_in_turn(write, tmp_path):
    write("old", {1e-3: 50, 1e-4: 70, 1e-1: 60})
    write("new", {1e-3: 50, 1e-2: 90, 1e-5: 80})
    assert found(new_search(), tmp_path) == [("new", 1, 1e-2), ("old", 1, 1e-4), ("new", 2, 1e-5), ("old", 2, 1e-1)]


def test_proposals_are_at_least_as_good_as_their_baseline(write, tmp_path):
    write("old", {1e-3: 65, 1e-4: 70, 1e-1: 60, 1.0: None})
    assert found(new_search(), tmp_path) == [("old", 1, 1e-4)]


def test_proposals_leave_out_what_is_nearly_the_same(write, tmp_path):
    write("old", {1e-1: 50, 1.1e-3: 90, 1e-4: 80, 1.5e-4: 70})
    assert found(new_search(), tmp_path) == [("old", 2, 1e-4), ("old", 0, 1e-1)]


def test_proposals_are_moved_into_the_bounds(write, tmp_path):
    write("old", {1e-3: 50, 1.0: 70, 1e-5: 60})
    narrow = dataclasses.replace(SPACE, domains={"lr": Float(1e-4, 1e-2, log=True)})
    assert found(new_search(space=narrow), tmp_path) == [("old", 1, 1e-2), ("old", 2, 1e-4)]


def test_proposals_pass_over_choices_that_the_space_lacks():
    space = make_space(domains={"optimizer": Categorical(("adam", "sgd")), "unfreeze_depth": Int(0, 3)})
    tried = {"optimizer": "adam", "unfreeze_depth": 1}
    history = [(4, {"optimizer": "adamw", "unfreeze_depth": 2}), (6, {"optimizer": "sgd", "unfreeze_depth": 5})]
    (proposal,) = take_turns(space, {"old": history}, tried=tried)
    assert (proposal.trial, proposal.values) == (6, {"optimizer": "sgd", "unfreeze_depth": 3})


OTHERS = {
    "fields": {"space": dataclasses.replace(SPACE, domains={**SPACE.domains, "unfreeze_depth": Int(0, 3)})},
    "optimizer": {"space": dataclasses.replace(SPACE, base=dataclasses.replace(BASE, optimizer="sgd"))},
    "model": {"space": dataclasses.replace(SPACE, base=dataclasses.replace(BASE, model="vgg11"))},
    "metric": {"metric": "macro_f1"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_auto_takes_no_study_of_another_kind(write, tmp_path, other):
    write("old", {1e-3: 50, 1e-4: 70}, **other)
    assert find_proposals(new_search(), tmp_path) == ((), [])


def test_auto_takes_a_study_of_other_epochs(write, tmp_path):
    write("old", {1e-3: 50, 1e-4: 70})
    longer = dataclasses.replace(SPACE, base=dataclasses.replace(BASE, epochs=9, augmentation="flip"))
    assert found(new_search(space=longer), tmp_path) == [("old", 1, 1e-4)]


def test_study_that_goes_on_is_left_out_with_remark(write, tmp_path):
    write("old", {1e-3: 50, 1e-4: 70}, ended=False)
    proposals, remarks = find_proposals(new_search(), tmp_path)
    assert (proposals, remarks) == ((), ["study old is left out of the first proposals, since it has not ended"])


def test_unreadable_study_is_left_out_with_remark(write, tmp_path):
    write("old", {1e-3: 50, 1e-4: 70})
    (tmp_path / "studies" / "torn").mkdir()
    (tmp_path / "studies" / "torn" / "journal.log").write_bytes(b"\0\0")
    proposals, remarks = find_proposals(new_search(), tmp_path)
    assert len(proposals) == 1
    assert remarks == ["study torn is left out of the first proposals, since its record cannot be read"]


def test_named_study_may_be_of_another_model(write, tmp_path):
    write("old", {1e-3: 50, 1e-4: 70}, **OTHERS["model"])
    write("other", {1e-3: 50, 1e-2: 70})
    assert found(new_search("old"), tmp_path) == [("old", 1, 1e-4)]


def test_named_study_of_other_fields_is_refused(write, tmp_path):
    write("old", {1e-3: 50}, **OTHERS["fields"])
    with pytest.raises(ConfigError, match=r"--prior: old must search the fields lr, but searches lr, unfreeze_depth\."):
        find_proposals(new_search("old"), tmp_path)


def test_none_asks_for_no_study(write, tmp_path):
    write("old", {1e-3: 50, 1e-4: 70})
    assert find_proposals(new_search("none"), tmp_path) == ((), [])


@pytest.fixture
def record(write, tmp_path):
    """A search of ten trials that learns from a study of five, which is gone by now."""
    write("old", {1e-3: 50, 1e-4: 60, 1e-2: 90, 1e-1: 80, 1e-5: 70})
    proposals, _ = find_proposals(new_search(), tmp_path)
    design = new_search(proposals=proposals, portfolio=({"lr": 5e-3},))
    record = Record.create(tmp_path / "studies" / "new", make_manifest(design))
    yield record
    record.close()


def test_first_trials_are_a_third_of_the_budget(record):
    assert [plan.recipe.lr for plan in plan_first_trials(record)] == [1e-3, 1e-2, 1e-1, 1e-5]


def test_proposals_are_described_with_their_trials(record):
    record.add(plan_first_trials(record))
    assert describe_proposals(record) == "3 from study old (trials 2, 3, 4)"


def test_manifest_keeps_proposals(record):
    assert Manifest.from_dict(record.manifest.to_dict()).design == record.manifest.design


def test_manifest_of_an_earlier_version_has_no_proposals(record):
    values = {key: value for key, value in record.manifest.to_dict().items() if key not in ("prior", "proposals")}
    assert Manifest.from_dict(values).design.prior == ("none",)
