"""The journal holds each trial once, with everything that came of it, for whoever opens it next."""

import json
import math
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from support.manifests import make_manifest, make_space, small_recipe
from support.results import TEST

from study.config.plan import Plan
from study.config.search_space import Budget, Float, Int, Pruner, Resources, SearchSpace
from study.errors import RecordError
from study.results.metrics import EpochResult
from study.results.optuna_adapters import MIN_REPORTED, rank_fields
from study.results.record import Record

EPOCH = EpochResult(1, train_loss=2.0, epoch_s=3.0, images_per_s=10.0)


@pytest.fixture(autouse=True)
def _quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def record(tmp_path):
    record = Record.create(tmp_path / "studies" / "one", make_manifest(data="digits"))
    yield record
    record.close()


def test_next_trial_gives_each_planned_trial_once_in_order(record, make_recipe):
    recipes = [make_recipe(lr=lr) for lr in (0.1, 0.2, 0.3)]
    record.add(Plan(None, "baseline", recipe, 5) for recipe in recipes)
    plans = [record.next_trial() for _ in range(4)]
    assert [plan.recipe for plan in plans[:3]] == recipes
    assert [plan.number for plan in plans[:3]] == [0, 1, 2]
    assert {plan.seed for plan in plans[:3]} == {5}
    assert plans[3] is None


def test_trial_returns_what_was_reported(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    record.facts(plan, {"device": "CPU"})
    record.epoch(plan, EPOCH)
    record.tested(plan, TEST)
    record.complete(plan)
    trial = record.trial(plan)
    assert (trial.epochs, trial.test, trial.facts) == ((EPOCH,), TEST, {"device": "CPU"})
    assert (trial.state, trial.value) == ("complete", 7 / 8)


def test_complete_takes_the_last_validation_where_there_is_no_test(record, make_recipe):
    record.add([Plan(None, "search", make_recipe(), 0)])
    plan = record.next_trial()
    for epoch, right in ((1, 3), (2, 1)):
        record.epoch(plan, EpochResult(epoch, 2.0, 3.0, 10.0, val_loss=1.0, val_confusion=[[right, 4 - right]] * 2))
    record.complete(plan)
    assert record.trial(plan).value == 0.5


def test_a_trial_that_was_stopped_has_no_value(make_search):
    record = make_search(trials=2)
    plan = record.next_trial()
    record.epoch(plan, scored(1, 0.5))
    record.prune(plan, "pruned")
    assert (record.trial(plan).value, record.trial(plan).val_accuracy) == (None, 0.5)


def test_only_the_pruner_saves_time(make_search):
    record = make_search(trials=2)
    saved = []
    for reason in ("pruned", "the time budget is spent"):
        plan = record.next_trial()
        record.epoch(plan, scored(1, 0.5))
        record.prune(plan, reason)
        saved.append(record.trial(plan).saved_s)
    assert saved[0] > 0 == saved[1]


def test_each_opening_of_the_test_images_is_recorded(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    assert record.trial(plan).tests_opened == 0
    record.open_test(plan)
    again = reopen(record)  # before it had an answer
    again.open_test(plan)
    again.tested(plan, TEST)
    assert again.trial(plan).tests_opened == 2
    again.close()


def test_seconds_are_those_of_training_validation_and_test(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    for number in (1, 2):
        record.epoch(plan, replace(EPOCH, epoch=number, val_s=0.5))
    record.tested(plan, replace(TEST, seconds=2.0))
    assert (record.trial(plan).training_s, record.trial(plan).seconds) == (6.0, 9.0)


def test_refit_is_not_complete_without_its_test(record, make_recipe):
    record.add([Plan(None, "final", make_recipe(), 1)])
    plan = record.next_trial()
    record.epoch(plan, scored(1, 0.5))
    record.complete(plan)
    assert record.trial(plan).state == "failed"


def test_another_thread_reads_whole_steps_alone(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    with ThreadPoolExecutor() as pool, record.step():
        record._running(plan).set_user_attr("facts", {"device": "CPU"})
        seen = pool.submit(lambda: (record.trial(plan).facts, os.path.getsize(record.directory / "journal.log")))
        time.sleep(0.1)
        assert not seen.done()
    assert seen.result() == ({"device": "CPU"}, os.path.getsize(record.directory / "journal.log"))


def test_what_killed_sessions_left_half_written_is_swept_away(record):
    studies, study = record.directory.parent, record.directory
    drafts = [studies / ".one-x1" / "one", study / ".model-x2" / "model"]
    for draft in drafts:
        draft.mkdir(parents=True)
    (study / "report.ab12.partial").touch()
    another = studies / ".one-more-x3" / "one-more"
    another.mkdir(parents=True)
    reopen(record).close()
    assert sorted(path.name for path in study.iterdir()) == ["journal.log", "lock"]
    assert sorted(path.name for path in studies.iterdir()) == [".one-more-x3", "one"]


def test_complete_without_a_result_is_a_failure(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    record.complete(plan)
    assert record.trial(plan).state == "failed"
    assert record.trial(plan).reason == "it ended without a result."


def test_an_epoch_told_twice_counts_once(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    record.epoch(plan, EPOCH)
    record.epoch(plan, EPOCH)
    assert record.trial(plan).epochs == (EPOCH,)


def test_trial_keeps_what_stopped_it(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(epochs=4), 0)])
    plan = record.next_trial()
    record.epoch(plan, EPOCH)
    record.prune(plan, "pruned")
    trial = record.trial(plan)
    assert (trial.state, trial.reason, trial.value) == ("pruned", "pruned", None)
    assert (trial.seconds, trial.saved_s) == (3.0, 9.0)


def test_finals_have_numbers_and_a_ranking_of_their_own(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0), Plan(None, "final", make_recipe(), 1)])
    first, final = record.next_trial(), record.next_trial()
    assert (first.key, final.key) == ("0", "final-0")
    record.tested(final, TEST)
    record.complete(final)
    assert [trial.state for trial in record.trials()] == ["running"]
    assert [trial.value for trial in record.finals()] == [7 / 8]


def test_add_plans_nothing_twice(record, make_recipe):
    for _ in range(2):
        record.add([Plan(None, "baseline", make_recipe(), 0), Plan(None, "final", make_recipe(), 1)])
    assert (len(record.trials()), len(record.finals())) == (1, 1)


# What a search proposes.


@pytest.fixture
def make_search(tmp_path, make_recipe):
    """Open the record of a search over learning rate and depth; keywords change its budget or pruner."""
    opened = []

    def make(name="search", seed=0, pruner=None, **budget):
        space = SearchSpace(
            name="small",
            file=tmp_path / "small.toml",
            domains={"lr": Float(1e-5, 1e-2, log=True), "unfreeze_depth": Int(0, 3)},
            base=make_recipe(epochs=4),
            budget=Budget(**{"trials": 12} | budget),
            pruner=pruner or Pruner("none"),
            resources=Resources(),
        )
        opened.append(Record.create(tmp_path / "studies" / name, make_manifest(space=space, seed=seed)))
        opened[-1].add([Plan(None, "search", space.base, seed)])
        return opened[-1]

    yield make
    for record in opened:
        record.close()


def scored(epoch, accuracy):
    """An epoch whose validation accuracy, of 100 images a class, is `accuracy`."""
    right = round(100 * accuracy)
    return EpochResult(epoch, 2.0, 3.0, 10.0, val_loss=1.0, val_confusion=[[right, 100 - right], [100 - right, right]])


def run_search(record, score):
    """Run all that a record proposes; `score` gives the accuracy of a plan in an epoch. Return the plans."""
    plans = []
    while plan := record.next_trial():
        plans.append(plan)
        for epoch in range(1, plan.recipe.epochs + 1):
            if record.epoch(plan, scored(epoch, score(plan, epoch))):
                break
        else:
            record.complete(plan)
    return plans


def by_lr(plan, epoch):
    """Better the nearer lr is to 1e-3, and from epoch to epoch."""
    return 0.5 + 0.1 * epoch - 0.05 * abs(math.log10(plan.recipe.lr) + 3)


def test_search_begins_with_the_baseline_and_keeps_its_budget(make_search, make_recipe):
    plans = run_search(make_search(trials=5), by_lr)
    assert plans[0].recipe == make_recipe(epochs=4)
    assert [plan.number for plan in plans] == list(range(5))


def test_search_proposes_from_its_space_alone(make_search):
    plans = run_search(make_search(trials=12), by_lr)
    assert {plan.recipe.unfreeze_depth for plan in plans} <= {0, 1, 2, 3}
    assert all(1e-5 <= plan.recipe.lr <= 1e-2 for plan in plans)
    assert len({plan.recipe.lr for plan in plans}) == 12


def test_search_reaches_both_ends_of_a_whole_number(make_search):
    plans = run_search(make_search(trials=40), lambda plan, epoch: 0.5)
    assert {plan.recipe.unfreeze_depth for plan in plans} == {0, 1, 2, 3}


def test_search_repeats_itself_for_one_seed(make_search):
    first, second = (run_search(make_search(name, seed=3), by_lr) for name in ("one", "two"))
    assert [plan.recipe for plan in first] == [plan.recipe for plan in second]


def test_search_differs_between_seeds(make_search):
    first, second = (run_search(make_search(f"seed{seed}", seed=seed), by_lr) for seed in (0, 1))
    assert [plan.recipe for plan in first[1:]] != [plan.recipe for plan in second[1:]]


def test_search_learns_from_what_it_saw(make_search):
    """After its random start the sampler looks where the scores are best."""
    plans = run_search(make_search(trials=40), by_lr)
    distance = [abs(math.log10(plan.recipe.lr) + 3) for plan in plans]
    assert np.mean(distance[25:]) < 0.75 * np.mean(distance[1:11])


def test_search_runs_a_baseline_outside_its_space_as_it_is(make_search, make_recipe):
    record = make_search(trials=15)
    outside = make_recipe(epochs=4, optimizer="sgd", lr=0.5)
    record.add([Plan(None, "search", outside, 0)])
    plans = run_search(record, by_lr)
    assert plans[1].recipe == outside
    assert set(rank_fields(record.optuna_study, record.space)) == {"lr", "unfreeze_depth"}


def test_importances_find_what_mattered(make_search):
    record = make_search(trials=30)
    run_search(record, by_lr)
    importances = rank_fields(record.optuna_study, record.space)
    assert importances["lr"] > 0.8
    assert sum(importances.values()) == pytest.approx(1.0)


def test_importances_leave_out_a_field_that_did_nothing(tmp_path):
    domains = {"lr": Float(1e-5, 1.0, log=True), "momentum": Float(0.0, 0.9)}
    for optimizer, ranked in (("adam", {"lr"}), ("sgd", {"lr", "momentum"})):
        space = make_space(domains=domains, base=small_recipe(optimizer=optimizer), budget=Budget(12))
        record = Record.create(tmp_path / optimizer, make_manifest(space=space))
        run_search(record, by_lr)
        assert set(rank_fields(record.optuna_study, space)) == ranked
        record.close()


def test_importances_leave_out_a_field_that_never_varied(make_search):
    record = make_search(trials=30)
    run_search(record, by_lr)
    for trial in record.optuna_study.get_trials(deepcopy=False):
        trial.params["unfreeze_depth"] = 1
    assert rank_fields(record.optuna_study, record.space) == {"lr": pytest.approx(1.0)}


def test_importances_of_tied_trials_are_none(make_search):
    record = make_search(trials=30)
    run_search(record, lambda plan, epoch: 0.5 + 0.1 * (plan.number % 3 == 0))
    assert rank_fields(record.optuna_study, record.space) == {}


def test_log_loss_is_maximised_with_its_sign_turned(make_search):
    record = make_search(trials=2)
    record.manifest = replace(record.manifest, design=replace(record.manifest.design, metric="log_loss"))
    plan = record.next_trial()
    for number, loss in ((1, 0.5), (2, 0.4)):
        record.epoch(plan, replace(scored(number, 0.5), val_loss=loss))
    record.complete(plan)
    assert (record.trial(plan).value, record.trial(plan).last_score) == (-0.4, -0.4)


def test_importances_of_too_little_are_none(make_search):
    record = make_search(trials=1)
    run_search(record, by_lr)
    assert rank_fields(record.optuna_study, record.space) == {}


def test_pruner_stops_what_is_behind_and_keeps_its_curve(make_search):
    record = make_search(trials=8, pruner=Pruner("asha", min_epochs=1, reduction_factor=2))
    run_search(record, lambda plan, epoch: 0.9 - 0.1 * plan.number)
    trials = record.trials()
    judged = trials[MIN_REPORTED:]
    assert {trial.state for trial in judged} == {"pruned"}
    assert all(len(trial.epochs) == 1 and trial.epochs[0].val_confusion for trial in judged)


@pytest.mark.parametrize("trials", [2, 3, 5, 10])
def test_pruner_leaves_trials_to_compare_with_a_good_baseline(make_search, trials):
    record = make_search(trials=trials, pruner=Pruner("asha", min_epochs=1, reduction_factor=2))
    run_search(record, lambda plan, epoch: 0.9 - 0.1 * bool(plan.number))
    assert [trial.state for trial in record.trials()].count("complete") >= min(trials, MIN_REPORTED)


@pytest.mark.parametrize(
    ("scores", "ended"),
    [
        ((0.9, 0.59), True),  # a guess is right about half of the images: 9 points learnt of 40
        ((0.9, 0.61), False),
        ((0.59, 0.9), False),  # not if it came first, since the baseline runs all its epochs
        ((0.45, 0.4), False),  # nobody has learnt anything yet
    ],
)
def test_only_hopeless_trials_end_among_the_first(make_search, scores, ended):
    record = make_search(trials=2, pruner=Pruner("asha"))
    run_search(record, lambda plan, epoch: scores[plan.number])
    assert [trial.state for trial in record.trials()] == ["complete", "pruned" if ended else "complete"]
    assert len(record.trials()[1].epochs) == (1 if ended else 4)


def test_hopeless_trials_are_judged_by_the_metric_of_the_study(make_search):
    """Both are right about as many images; a guess has a log loss of 0.69."""
    record = make_search(trials=2, pruner=Pruner("asha"))
    record.manifest = replace(record.manifest, design=replace(record.manifest.design, metric="log_loss"))
    ends = []
    for loss in (0.2, 0.6):
        plan = record.next_trial()
        ends.append(record.epoch(plan, replace(scored(1, 0.9), val_loss=loss)))
    assert ends == [None, "pruned"]


def propose_where_large_rates_diverge(record):
    """Run a search in which rates above 2e-3 diverge, and accuracy rises up to that edge; return the diverged share."""
    diverged = []
    while plan := record.next_trial():
        diverged.append(plan.recipe.lr > 2e-3)
        if diverged[-1]:
            record.fail(plan, "train_loss: must stay finite")
            continue
        accuracy = 0.2 + 0.1 * (math.log10(plan.recipe.lr) + 5)
        for epoch in range(1, plan.recipe.epochs + 1):
            record.epoch(plan, scored(epoch, accuracy))
        record.complete(plan)
    return sum(diverged[20:]) / len(diverged[20:])


def test_sampler_leaves_the_region_where_recipes_diverge(make_search):
    record = make_search(trials=40)
    assert propose_where_large_rates_diverge(record) < 0.6  # all of them if failed trials are ignored
    assert {trial.state for trial in record.trials()} == {"complete", "failed"}


def test_pruner_never_stops_the_baseline(make_search, make_recipe):
    record = make_search(trials=1, pruner=Pruner("asha", min_epochs=1, reduction_factor=2))
    better = [record.next_trial()]
    record.add([Plan(None, "search", make_recipe(epochs=4, lr=0.5), 0)])
    other = record.next_trial()
    record.epoch(other, scored(1, 0.9))
    assert record.epoch(better[0], scored(1, 0.1)) is None


def test_pruner_lets_the_last_epoch_be_the_last(make_search):
    record = make_search(trials=6, pruner=Pruner("asha", min_epochs=4, reduction_factor=2))
    run_search(record, lambda plan, epoch: 0.9 - 0.1 * plan.number)
    assert {trial.state for trial in record.trials()} == {"complete"}


def test_time_budget_ends_the_search_and_stops_running_trials(make_search):
    record = make_search(time_s=0.2)
    plan = record.next_trial()
    assert record.epoch(plan, scored(1, 0.5)) is None
    time.sleep(0.25)
    assert record.epoch(plan, scored(2, 0.5)) == "the time budget is spent"
    assert record.trial(plan).state == "pruned"
    assert record.next_trial() is None


def test_a_search_proposes_nothing_once_the_verdict_has_begun(make_search, make_recipe):
    record = make_search(trials=5)
    record.complete(record.next_trial())
    record.add([Plan(None, "final", make_recipe(), 1)])
    assert record.next_trial().stage == "final"
    assert record.next_trial() is None


def test_the_journal_is_one_that_optuna_opens(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    plan = record.next_trial()
    record.tested(plan, TEST)
    record.complete(plan)
    backend = optuna.storages.journal.JournalFileBackend(str(record.directory / "journal.log"))
    study = optuna.load_study(study_name="one", storage=optuna.storages.JournalStorage(backend))
    assert study.best_value == 7 / 8


def test_the_journal_is_text_and_holds_no_pickle(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    for line in (record.directory / "journal.log").read_text().splitlines():
        json.loads(line)


def test_record_refuses_a_name_that_exists(record, tmp_path):
    with pytest.raises(RecordError, match=r"a study named 'one' exists. Choose another --name"):
        Record.create(tmp_path / "studies" / "one", make_manifest())


def test_record_refuses_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "studies").write_text("in the way")
    with pytest.raises(RecordError, match=r"one: must be writable, but got: "):
        Record.create(tmp_path / "studies" / "one", make_manifest())


def test_record_gives_each_study_its_own_uid(record, tmp_path):
    other = Record.create(tmp_path / "studies" / "two", make_manifest())
    assert other.manifest.uid != record.manifest.uid
    other.close()


# What a record is after a crash.


def reopen(record):
    record.close()
    return Record.open(record.directory)


def test_a_record_is_one_processs_alone(record):
    with pytest.raises(RecordError, match=r"study 'one' is being run by another process"):
        Record.open(record.directory)
    assert Record.read(record.directory).manifest == record.manifest


def test_a_record_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"nowhere: must be a study's directory"):
        Record.open(tmp_path / "nowhere")


def test_open_gives_what_was_running_first_under_its_own_number(record, make_recipe):
    record.add(Plan(None, "baseline", make_recipe(lr=lr), 0) for lr in (0.1, 0.2, 0.3))
    record.complete(record.next_trial())
    running = record.next_trial()
    record.epoch(running, EPOCH)
    again = reopen(record)
    assert again.next_trial() == running
    assert again.trial(running).epochs == (EPOCH,)
    assert again.next_trial().number == 2
    again.close()


def test_open_ends_what_was_only_not_said_to_have_ended(make_search, make_recipe):
    record = make_search(trials=1)
    plan = record.next_trial()
    for epoch in range(1, 5):
        record.epoch(plan, scored(epoch, 0.5))
    record.add([Plan(None, "final", make_recipe(), 1)])
    final = record.next_trial()
    record.tested(final, TEST)
    again = reopen(record)
    assert (again.trial(plan).state, again.trial(final).state) == ("complete", "complete")
    assert again.next_trial() is None
    again.close()


def test_open_counts_a_killed_session_until_last_seen(make_search, monkeypatch):
    monkeypatch.setattr("study.results.clock.BEAT_S", 0.0)
    record = make_search(time_s=0.4)
    record.next_trial()
    time.sleep(0.3)
    record.beat()  # no epoch has ended yet
    again = reopen(record)
    time.sleep(0.15)
    assert again.time_is_up()
    again.close()


def test_open_counts_the_time_of_earlier_sessions(make_search):
    record = make_search(time_s=0.4)
    plan = record.next_trial()
    time.sleep(0.3)
    record.epoch(plan, scored(1, 0.5))
    again = reopen(record)
    assert not again.time_is_up()
    time.sleep(0.15)
    assert again.time_is_up()
    again.close()


def test_time_budget_ignores_a_clock_that_was_set(make_search, monkeypatch):
    record = make_search(time_s=60)
    record.epoch(record.next_trial(), scored(1, 0.5))
    monkeypatch.setattr("study.results.record.time.time", lambda: 4e9)
    again = reopen(record)
    again.epoch(again.next_trial(), scored(2, 0.5))
    third = reopen(again)
    assert third.spent_s < 5
    third.close()


def test_a_changed_budget_is_kept(make_search):
    record = make_search(trials=2)
    record.set_budget(Budget(trials=5))
    again = reopen(record)
    assert again.space.budget.trials == 5
    assert len(run_search(again, by_lr)) == 5
    again.close()


def test_moved_places_are_kept_and_nothing_else_changes(make_search):
    record = make_search(trials=2)
    manifest = record.manifest
    record.set_places(source=manifest.source, data_dir=manifest.data_dir, weights=manifest.weights)
    assert record.noted("places") is None
    record.set_places(source="/there")
    again = reopen(record)
    again.set_places(source="/there", weights="/weights")
    last = reopen(again)
    assert last.manifest == replace(manifest, source="/there", weights="/weights")
    last.close()


@pytest.mark.parametrize("kept", range(0, 90, 7))
def test_search_that_was_cut_anywhere_continues_unchanged(make_search, kept):
    """Cut after any line of the journal, or within one, a resumed search ends like one that was never stopped."""
    asha = Pruner("asha", min_epochs=1, reduction_factor=2)
    whole = make_search("whole", trials=14, pruner=asha)
    run_search(whole, by_lr)
    cut = make_search("cut", trials=14, pruner=asha)
    run_search(cut, by_lr)
    cut.close()
    journal = cut.directory / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    begun = next(index for index, line in enumerate(lines) if b"spent_s" in line) + 8
    end = begun + kept * (len(lines) - begun) // 90
    journal.write_bytes(b"".join(lines[:end]) + lines[end][: len(lines[end]) // 2])
    again = Record.open(cut.directory)
    again.add([Plan(None, "search", again.space.base, 0)])
    while plan := again.next_trial():
        for epoch in range(len(again.trial(plan).epochs) + 1, 5):
            if again.epoch(plan, scored(epoch, by_lr(plan, epoch))):
                break
        else:
            again.complete(plan)

    def told(record):
        return [(trial.plan, trial.state, trial.value, trial.epochs, trial.reason) for trial in record.trials()]

    assert told(again) == told(whole)
    again.close()


@pytest.mark.parametrize(
    "line", [b"cos\nsystem\n(S'touch ran'\ntR.", b'{"op_code": 4}\n', b'{"op_code": "x", "worker_id": 7}\n', b"[]\n"]
)
def test_a_hostile_journal_is_refused_and_stays_as_it_is(record, line):
    journal = record.directory / "journal.log"
    content = journal.read_bytes()
    journal.write_bytes(line + content)
    record.close()
    with pytest.raises(RecordError, match=r"journal.log: .*The file was not changed"):
        Record.open(record.directory)
    assert journal.read_bytes() == line + content


def test_journal_of_a_newer_optuna_is_refused_with_both_versions(record, tmp_path):
    manifest = make_manifest(versions={"optuna": "99.1"})
    Record.create(tmp_path / "two", manifest).close()
    with open(tmp_path / "two" / "journal.log", "a") as journal:
        journal.write('{"op_code": 77, "worker_id": "x"}\n')
    with pytest.raises(RecordError, match=rf"begun with Optuna 99.1, and Optuna {optuna.__version__} is installed"):
        Record.read(tmp_path / "two")


def test_copy_of_a_study_has_an_id_of_its_own(record):
    record.close()
    copy = Record.open(Path(shutil.copytree(record.directory, record.directory.with_name("copy"))))
    assert copy.uid != record.uid
    assert copy.manifest == record.manifest
    again = reopen(copy)
    assert again.uid == copy.uid
    again.close()


def test_renamed_study_keeps_its_id_and_its_trials(record, make_recipe):
    record.add([Plan(None, "baseline", make_recipe(), 0)])
    record.close()
    renamed = Record.open(record.directory.rename(record.directory.with_name("renamed")))
    assert (renamed.uid, len(renamed.trials())) == (record.uid, 1)
    renamed.close()


def test_a_trial_that_ends_leaves_no_weights_behind(record, make_recipe):
    record.add([Plan(None, "as-written", make_recipe(), 0), Plan(None, "final", make_recipe(), 1)])
    record.checkpoints.mkdir()
    for plan in (record.next_trial(), record.next_trial()):
        (record.checkpoints / plan.checkpoint).touch()
        record.tested(plan, TEST)
        record.complete(plan)
    assert [path.name for path in record.checkpoints.iterdir()] == ["final-0.safetensors"]
