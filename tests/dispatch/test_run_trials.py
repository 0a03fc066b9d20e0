"""The adapters between the record and Ray Tune, called as Ray Tune calls them."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from support.images import make_images
from support.manifests import make_manifest, make_space
from support.results import TEST

from study.config.plan import Plan
from study.config.search_space import Budget, Pruner
from study.dispatch.cluster import Allotment, ray_session
from study.dispatch.run_trials import run_trials
from study.dispatch.scheduler import RecordScheduler, RecordStopper
from study.dispatch.searcher import RecordSearcher, Work
from study.dispatch.stages import KEY, Stage, put_stages
from study.results.metrics import EpochResult, Progress
from study.results.optuna_adapters import MIN_REPORTED
from study.results.record import Record
from study.training.run_trial import Facts, Failure, Inputs

BUSY_CLUSTER = """
import json
from pathlib import Path
import ray
from support.images import make_images
from support.manifests import make_manifest, make_space
from study.config.plan import Plan
from study.config.search_space import Budget
from study.results.record import Record
from study.training.run_trial import Inputs
from study.dispatch.cluster import Allotment, ray_session
from study.dispatch.run_trials import run_trials
from study.dispatch.searcher import Work
from study.dispatch.stages import put_stages

class Witness:
    told = []
    def on_start(self, plan): pass
    def on_wait(self, plan, shortage): self.told.append(shortage)
    def on_change(self, plan): pass

def never(config, *, inputs): raise AssertionError

space = make_space(budget=Budget(3, 10.0))
inputs = Inputs(make_images(2), None, None, 2, {}, "auto")
with ray_session(None, verbose=False) as scratch:
    cores = ray.cluster_resources()["CPU"]
    @ray.remote(num_cpus=cores)
    class Other:
        def there(self): pass
    other = Other.remote()
    ray.get(other.there.remote())
    record = Record.create(Path("busy").absolute(), make_manifest(space=space))  # its time begins now
    record.add([Plan(None, "search", space.base, 0)])
    work = Work(record, put_stages([inputs]), [Witness()])
    run_trials(lambda: work, resources=Allotment(cores, 0, 1), scratch=scratch, function=never)
print(json.dumps([Witness.told, [(trial.state, trial.reason) for trial in record.trials()], record.spent_s]))
"""

FACTS = Facts("CPU", "fp32", 5, 5, 2, "AVX2")
OUT_OF_MEMORY = Failure("out of memory: 3 GB wanted", out_of_memory=True)


class Witness:
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def on_start(self, plan):
        self.told.append(("start", plan.key))

    def on_wait(self, plan, shortage):
        self.told.append(("wait", shortage))

    def on_progress(self, plan, progress):
        self.told.append(("progress", plan.key))

    def on_change(self, plan):
        self.told.append(("change", plan.key))


@pytest.fixture
def tune(tmp_path, make_recipe):
    """A record of three planned trials, and what stands between it and Ray Tune."""
    record = Record.create(tmp_path / "one", make_manifest())
    record.add(Plan(None, "baseline", make_recipe(lr=lr), 0) for lr in (0.1, 0.2, 0.3))
    witness = Witness()
    searcher = RecordSearcher(lambda: Work(record, [Stage(0)], [witness]))
    scheduler = RecordScheduler(searcher, 1)

    def report(config, value, **more):
        return scheduler.on_trial_result(None, SimpleNamespace(config=config), {"report": value, **more})

    yield SimpleNamespace(record=record, searcher=searcher, report=report, told=witness.told)
    record.close()


def test_reports_are_recorded_and_listeners_told(tune):
    config = tune.searcher.suggest("a")
    assert tune.report(config, Progress(1, 1, 2, 3.0), facts=FACTS) == "CONTINUE"
    assert tune.report(config, EpochResult(1, 2.0, 3.0, 10.0)) == "CONTINUE"
    assert tune.report(config, TEST) == "STOP"
    tune.searcher.on_trial_complete("a", {})
    trial = tune.record.trial(config["plan"])
    assert (trial.state, trial.value, len(trial.epochs)) == ("complete", 7 / 8, 1)
    assert trial.facts["arithmetic"] == "AVX2"
    assert [kind for kind, _ in tune.told] == ["start", "progress", "change", "change"]


def test_a_trial_without_a_test_ends_with_its_last_epoch(tmp_path, make_recipe):
    record = Record.create(tmp_path / "two", make_manifest(space=make_space()))
    record.add([Plan(None, "search", make_recipe(epochs=2), 0)])
    searcher = RecordSearcher(lambda: Work(record, [Stage(0)]))
    scheduler = RecordScheduler(searcher, 1)
    config = searcher.suggest("a")
    results = [EpochResult(epoch, 2.0, 3.0, 10.0, val_loss=1.0, val_confusion=[[3, 1], [1, 3]]) for epoch in (1, 2)]
    trial = SimpleNamespace(config=config)
    assert [scheduler.on_trial_result(None, trial, {"report": result}) for result in results] == ["CONTINUE", "STOP"]
    assert record.trial(config["plan"]).value == 0.75
    record.close()


def test_processes_start_before_the_study_is_prepared(tune):
    prepared = []

    def prepare():
        prepared.append(True)
        return Work(tune.record, [Stage(0)])

    searcher = RecordSearcher(prepare, ahead=2)
    configs = [searcher.suggest(name) for name in "ab"]
    assert [config[KEY] for config in configs] == [None, None]
    assert not prepared
    assert not RecordStopper(searcher, lambda: None).stop_all()
    assert prepared, "while the processes start"
    searcher.on_trial_complete("a", {})
    searcher.on_trial_complete("b", error=True)  # its process died: the next trial gets another
    assert [searcher.suggest(name)["plan"].number for name in "cd"] == [0, 1]
    assert prepared == [True]


def test_an_error_while_a_study_is_prepared_ends_it(tune):
    searcher = RecordSearcher(lambda: 1 / 0, ahead=1)
    searcher.suggest("a")
    with pytest.raises(BaseException) as caught:
        RecordStopper(searcher, lambda: None).stop_all()
    assert not isinstance(caught.value, Exception), "Ray Tune goes on after an Exception"


def test_searcher_waits_for_running_trials_before_it_is_finished(tune):
    for name in "abc":
        tune.searcher.suggest(name)
    assert tune.searcher.suggest("d") is None
    for name in "abc":
        tune.searcher.on_trial_complete(name, {})
    assert tune.searcher.suggest("d") == "FINISHED"


def test_a_trial_whose_process_died_starts_again_before_any_other(tune):
    first, _ = tune.searcher.suggest("a"), tune.searcher.suggest("b")
    tune.searcher.on_trial_complete("a", None, error=True)
    assert tune.record.trial(first["plan"]).state == "running"
    assert tune.searcher.suggest("c") == first
    assert tune.searcher.suggest("d")["plan"].number == 2


def test_a_process_that_dies_again_and_again_fails_its_trial(tune):
    config = tune.searcher.suggest("a")
    for name, next_name in ("ab", "bc", "cd"):
        assert tune.record.trial(config["plan"]).state == "running"
        tune.searcher.on_trial_complete(name, None, error=True)
        following = tune.searcher.suggest(next_name)
    trial = tune.record.trial(config["plan"])
    assert (trial.state, trial.reason) == ("failed", "its process died 3 times, for lack of memory perhaps.")
    assert following["plan"].number == 1


def test_reason_of_a_death_is_read_in_any_encoding(tune, tmp_path):
    report = tmp_path / "error.txt"
    report.write_bytes(
        '  File "/caf\u00e9/numpy.py", line 1, in <module>\n    raise\nImportError: mine\n'.encode("latin-1")
    )
    config = tune.searcher.suggest("a")
    for name, next_name in ("ab", "bc", "cd"):
        dead = SimpleNamespace(trial_id=name, error_file=str(report))
        RecordScheduler(tune.searcher, 1).on_trial_error(None, dead)
        tune.searcher.on_trial_complete(name, None, error=True)
        tune.searcher.suggest(next_name)
    expected = "its process died 3 times, the last time by ImportError: mine, in /caf\ufffd/numpy.py."
    assert tune.record.trial(config["plan"]).reason == expected


def test_trial_repeated_alone_stays_alone_when_it_dies(tune):
    first = tune.searcher.suggest("a")
    tune.report(first, OUT_OF_MEMORY)
    tune.searcher.on_trial_complete("a", {})
    assert tune.searcher.suggest("b") == first
    tune.searcher.on_trial_complete("b", None, error=True)
    assert tune.searcher.suggest("c") == first
    assert tune.searcher.suggest("d") is None


def test_a_report_of_a_trial_that_has_ended_stops_it(tune):
    config = tune.searcher.suggest("a")
    tune.report(config, Failure("train_loss: must stay finite"))
    assert tune.report(config, Progress(1, 1, 2, 3.0), facts=FACTS) == "STOP"
    assert tune.record.trial(config["plan"]).facts == {}


def test_a_failure_fails_its_trial_at_once(tune):
    config = tune.searcher.suggest("a")
    tune.report(config, Failure("train_loss: must stay finite"))
    tune.searcher.on_trial_complete("a", {})
    assert tune.record.trial(config["plan"]).reason == "train_loss: must stay finite"
    assert tune.searcher.suggest("b")["plan"].number == 1


def test_failure_of_the_study_leaves_its_trial_unfinished(tune):
    config = tune.searcher.suggest("a")
    with pytest.raises(BaseException, match="must have room"):  # no Exception: Ray Tune would go on with the next trial
        tune.report(config, Failure("weights: must have room", stops_study=True))
    assert tune.record.trial(config["plan"]).state == "running"


def test_what_lacked_memory_is_repeated_once_and_alone(tune):
    first, other = tune.searcher.suggest("a"), tune.searcher.suggest("b")
    tune.report(first, OUT_OF_MEMORY)
    tune.searcher.on_trial_complete("a", {})
    assert tune.record.trial(first["plan"]).state == "running"
    assert tune.searcher.suggest("c") is None  # the other still runs
    tune.report(other, TEST)
    tune.searcher.on_trial_complete("b", {})
    assert tune.searcher.suggest("c") == first
    assert tune.searcher.suggest("d") is None  # it is to be alone
    tune.report(first, TEST)
    tune.searcher.on_trial_complete("c", {})
    assert tune.record.trial(first["plan"]).state == "complete"
    assert tune.searcher.suggest("d")["plan"].number == 2


def test_what_lacks_memory_even_alone_fails_with_its_reason(tune):
    first = tune.searcher.suggest("a")
    for name in "ab":
        tune.report(first, OUT_OF_MEMORY)
        tune.searcher.on_trial_complete(name, {})
        if name == "a":
            assert tune.searcher.suggest("b") == first
    trial = tune.record.trial(first["plan"])
    assert (trial.state, trial.reason) == ("failed", "out of memory: 3 GB wanted")
    assert tune.searcher.suggest("c")["plan"].number == 1


def test_trials_that_lacked_memory_are_handed_out_again_alone(tune):
    plans = [tune.searcher.suggest(trial)["plan"] for trial in "ab"]
    tune.searcher.take_back(out_of_memory=True)
    first = tune.searcher.suggest("c")["plan"]
    assert tune.searcher.suggest("d") is None
    tune.record.fail(first, "not the point here")
    tune.searcher.on_trial_complete("c", {})
    assert {first, tune.searcher.suggest("e")["plan"]} == {*plans}


def test_trial_that_lacks_memory_twice_fails(tune):
    for trial in "ab":
        plan = tune.searcher.suggest(trial)["plan"]
        tune.searcher.take_back(out_of_memory=True)
    assert tune.record.trial(plan).reason.startswith("out of memory: Ray ended its process twice")
    assert tune.searcher.suggest("c")["plan"].number == 1


def test_trials_of_lost_processes_start_again(tune):
    plan = tune.searcher.suggest("a")["plan"]
    tune.searcher.take_back(out_of_memory=False)
    assert tune.searcher.suggest("b")["plan"] == plan


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Return a function that makes a search whose time budget is `time_s`, with its stopper and a waiting trial."""
    monkeypatch.setattr("study.dispatch.scheduler.WAIT_S", 0.0)
    made = []

    def make(time_s, shortage="waiting for cores"):
        space = make_space(budget=Budget(3, time_s))
        record = Record.create(tmp_path / "two", make_manifest(space=space))
        made.append(record)
        record.add([Plan(None, "search", space.base, 0)])
        searcher = RecordSearcher(lambda: Work(record, [Stage(0)]))
        searcher.suggest("a")
        stopper = RecordStopper(searcher, lambda: shortage)
        return SimpleNamespace(record=record, searcher=searcher, stopper=stopper)

    yield make
    for record in made:
        record.close()


def test_search_ends_when_its_time_is_up_and_all_wait(search):
    assert search(1e-9).stopper.stop_all()


def test_search_waits_while_its_time_lasts(search):
    assert not search(60.0).stopper.stop_all()


def test_search_does_not_end_while_a_process_starts(search):
    assert not search(1e-9, shortage=None).stopper.stop_all()


def test_search_does_not_end_while_a_trial_reports(search):
    made = search(1e-9)
    made.searcher.on_trial_result("a", {})
    assert not made.stopper.stop_all()


def test_verdict_waits_although_the_time_is_up(search, make_recipe):
    made = search(1e-9)
    made.record.add([Plan(None, "final", make_recipe(), 1)])
    assert not made.stopper.stop_all()


@pytest.mark.slow
def test_taken_cores_are_named_and_the_budget_ends_the_wait(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command, environment = [sys.executable, "-c", BUSY_CLUSTER], {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [told], states, spent_s = json.loads(done.stdout.splitlines()[-1])
    assert told.startswith("waiting for CPU cores: 0 of the cluster's")
    assert states == [["pruned", "the time budget is spent"]]
    assert 10 <= spent_s < 25


def test_scheduler_stops_what_the_pruner_gives_up(tmp_path, make_recipe):
    space = make_space(budget=Budget(MIN_REPORTED + 1), pruner=Pruner("asha"))
    record = Record.create(tmp_path / "two", make_manifest(space=space))
    record.add([Plan(None, "search", space.base, 0)])
    searcher = RecordSearcher(lambda: Work(record, [Stage(0)]))
    scheduler = RecordScheduler(searcher, 1)
    good = EpochResult(1, 2.0, 3.0, 10.0, val_loss=1.0, val_confusion=[[9, 1], [1, 9]])
    decisions = []
    bad = dataclasses.replace(good, val_confusion=[[1, 9], [9, 1]])
    for name, result in enumerate([good] * MIN_REPORTED + [bad]):
        config = searcher.suggest(str(name))
        decisions.append(scheduler.on_trial_result(None, SimpleNamespace(config=config), {"report": result}))
        searcher.on_trial_complete(str(name), {})
    assert decisions == ["CONTINUE"] * MIN_REPORTED + ["STOP"]
    assert record.trials()[-1].state == "pruned"
    record.close()


def test_new_trials_are_chosen_once_and_in_order(tune):
    scheduler = RecordScheduler(tune.searcher, 1)
    first, gone, last = (SimpleNamespace(status=status) for status in ("PENDING", "TERMINATED", "PENDING"))
    for trial in (first, gone, last):
        scheduler.on_trial_add(None, trial)
    assert [scheduler.choose_trial_to_run(None) for _ in range(3)] == [first, last, None]


def test_idle_processes_are_kept_unless_memory_is_short(tune):
    kept = Counter()
    cache = SimpleNamespace(increase_max=lambda key, by: kept.update({key: by}))
    controller = SimpleNamespace(_tune_controller=SimpleNamespace(_actor_cache=cache))
    scheduler = RecordScheduler(tune.searcher, 2)
    trial = SimpleNamespace(config=tune.searcher.suggest("a"), placement_group_factory="a core", status="PENDING")
    scheduler.on_trial_add(controller, trial)
    scheduler.on_trial_result(controller, trial, {"report": Progress(1, 1, 2, 3.0)})
    assert kept == {"a core": 2}
    scheduler.on_trial_result(controller, trial, {"report": OUT_OF_MEMORY})
    assert kept == {"a core": 0}


@pytest.mark.slow
def test_two_processes_run_all_trials_of_all_stages(tmp_path, make_recipe):
    """Each trial is shorter than the start of a process, and two end at the same time."""
    pids = tmp_path / "pids"
    pids.mkdir()

    def sleep_briefly(config, *, inputs):
        (pids / config["plan"].key).write_text(str(os.getpid()))
        time.sleep(0.3)
        ray.tune.report({"report": EpochResult(1, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=[[1, 0], [0, 1]])})

    record = Record.create(tmp_path / "one", make_manifest())

    def stages():
        for stage in range(3):
            record.add(Plan(None, "search", make_recipe(epochs=1), seed) for seed in range(4 * stage, 4 * stage + 4))
            yield Inputs(make_images(2), None, None, 2, {}, "auto")

    with ray_session(None, verbose=False) as scratch:
        allotment = Allotment(ray.cluster_resources()["CPU"] / 2, 0, 2)
        work = Work(record, put_stages(stages()))
        run_trials(lambda: work, resources=allotment, scratch=scratch, ahead=True, function=sleep_briefly)
    record.close()
    used = [[(pids / str(number)).read_text() for number in range(first, first + 4)] for first in (0, 4, 8)]
    assert [len({*stage}) for stage in used] == [2, 2, 2]
    assert len({pid for stage in used for pid in stage}) == 2
