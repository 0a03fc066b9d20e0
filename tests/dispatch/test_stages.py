"""Trials of a later stage run in the process of the first, with inputs of their own; Ray frees those of the first."""

import gc
import os
import time

import numpy as np
import pytest
import ray
from ray import tune
from ray._private.state import actors
from support.images import make_images
from support.manifests import make_manifest

from study.config.plan import Plan
from study.dispatch.cluster import Allotment, ray_session
from study.dispatch.run_trials import run_trials
from study.dispatch.searcher import Work
from study.dispatch.stages import put_stages
from study.results.metrics import EpochResult
from study.results.record import Record
from study.training.run_trial import Failure, Inputs

SIZES = (3, 4, 5)
"""Number of training images of each stage."""


@pytest.fixture
def record(tmp_path):
    record = Record.create(tmp_path / "one", make_manifest())
    yield record
    record.close()


@pytest.mark.slow
def test_process_and_weights_stay_while_inputs_go(record, make_recipe):
    weights = {"net": {"weight": np.ones(10**6, np.float32)}}
    held = []

    def report(config, *, inputs):
        """Report process, address of the weights and number of training images as numbers of an epoch."""
        address = inputs.pretrained["net"]["weight"].__array_interface__["data"][0]
        numbers = float(os.getpid()), float(address), float(len(inputs.train))
        tune.report({"report": EpochResult(1, *numbers, val_loss=1.0, val_confusion=[[1, 0], [0, 1]])})

    def stages():
        for size in SIZES:
            assert all(trial.state == "complete" for trial in record.trials()), "a stage begins after the one before"
            counts = ray._private.worker.global_worker.core_worker.get_all_reference_counts()
            held.append(sum(count["local"] > 0 for name, count in counts.items() if name.startswith(b"00ff")))
            record.add([Plan(None, "search", make_recipe(epochs=1, lr=size / 100), 0)])
            yield Inputs(make_images(size), None, None, 2, weights, "auto")

    with ray_session(None, verbose=False) as scratch:
        work = Work(record, put_stages(stages()))
        run_trials(lambda: work, resources=Allotment(1, 0, 1), scratch=scratch, function=report)
    epochs = [trial.epochs[0] for trial in record.trials()]
    assert [epoch.images_per_s for epoch in epochs] == [*SIZES]
    assert len({epoch.train_loss for epoch in epochs}) == 1, "one process"
    assert len({epoch.epoch_s for epoch in epochs}) == 1, "the same weights, at one place"
    assert held == [0, 1, 1], "between two stages, Ray holds the weights alone"
    assert gc.get_freeze_count() == 0, "a notebook's garbage can be collected again"


@pytest.mark.slow
def test_a_process_that_starts_ahead_runs_the_trials(record, make_recipe, capfd):
    """Were the process to start with the first trial, the preparation would wait for it for ever."""

    def report(config, *, inputs):
        tune.report(
            {"report": EpochResult(1, float(os.getpid()), 1.0, 1.0, val_loss=1.0, val_confusion=[[1, 0], [0, 1]])}
        )

    def prepare():
        while not (alive := [actor for actor in actors().values() if actor["State"] == "ALIVE"]):
            time.sleep(0.05)
        seen.extend(actor["Pid"] for actor in alive)
        record.add(Plan(None, "search", make_recipe(epochs=1, lr=lr), 0) for lr in (0.1, 0.2))
        return Work(record, put_stages([Inputs(make_images(2), None, None, 2, {}, "auto")]))

    seen = []
    with ray_session(None, verbose=False) as scratch:
        run_trials(prepare, resources=Allotment(1, 0, 1), scratch=scratch, ahead=True, function=report)
    assert [trial.epochs[0].train_loss for trial in record.trials()] == seen * 2
    assert "Trial" not in capfd.readouterr().out, "Ray Tune prints trials without a result, whatever its verbosity"


@pytest.mark.slow
def test_errors_between_stages_end_the_study(record, make_recipe):
    def fail(config, *, inputs):
        tune.report({"report": Failure("on purpose")})

    def stages():
        record.add([Plan(None, "baseline", make_recipe(epochs=1), 0)])
        yield Inputs(make_images(2), None, None, 2, {}, "auto")
        raise ZeroDivisionError("between two stages")

    with ray_session(None, verbose=False) as scratch, pytest.raises(ZeroDivisionError, match="between two stages"):
        work = Work(record, put_stages(stages()))
        run_trials(lambda: work, resources=Allotment(1, 0, 1), scratch=scratch, function=fail)
    assert [trial.reason for trial in record.trials()] == ["on purpose"]
