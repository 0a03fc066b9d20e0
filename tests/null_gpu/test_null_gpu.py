"""Torch's CUDA code and ours on a GPU that does nothing: devices, types, memory, and what is launched and waited for.

Results are meaningless here, so no test looks at a loss. Each scenario runs once, in a process of its own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import study_command
from support.null_gpu import build, why_not

pytestmark = [pytest.mark.null_gpu, pytest.mark.slow]
HERE = Path(__file__).resolve().parent
FAMILIES = 11


@pytest.fixture(scope="module")
def on_null_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a process on the null GPU."""
    if reason := why_not():
        pytest.skip(reason)
    libraries = build(tmp_path_factory.mktemp("null_gpu"))
    return {**os.environ, **libraries, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}


@pytest.fixture(scope="module")
def scenario(on_null_gpu, tmp_path_factory) -> Callable[..., Any]:
    """Run a scenario, or return what it has already shown."""
    seen: dict[str, Any] = {}

    def run(name: str, **environment: str) -> Any:
        if name not in seen:
            room = tmp_path_factory.mktemp(name)
            done = subprocess.run(
                [sys.executable, HERE / "scenarios.py", name, room],
                env={**on_null_gpu, **environment},
                cwd=room,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            seen[name] = json.loads(done.stdout.splitlines()[-1])
        return seen[name]

    return run


def test_every_family_trains_without_a_fault_of_device(scenario):
    """A warning of torch that an operation is not deterministic counts as a fault."""
    assert [found["epochs"] for found in scenario("families").values()] == [2] * FAMILIES


def test_attention_waits_for_nothing_and_copies_nothing(scenario):
    """Its deterministic gradients, which are asked for in each backward pass, cost no wait."""
    batch = scenario("batches")["vit"]["memory"]["batch"]
    assert batch["synchronisations"] == batch["downloads"] == batch["uploads"] == 0


def test_every_source_of_outputs_serves_a_trial(scenario):
    tallies = {name: seen["tally"] for name, seen in scenario("sources").items()}
    assert tallies == {
        "without store": {},
        "unusable store": {"unstored": 128},
        "small store": {"computed": 128},
        "images from a file": {},
        "empty store": {"stored": 128},
        "full store": {"read": 128},
        "fewer frozen blocks": {"stored": 128},
    }


def test_outputs_of_fewer_blocks_are_computed_from_stored_ones(scenario):
    seen = scenario("sources")
    assert seen["fewer frozen blocks"]["network_calls"] < seen["without store"]["network_calls"]


def test_a_batch_from_files_waits_for_nothing(scenario):
    batch = scenario("batches")["resnet18"]["files"]["batch"]
    assert batch["synchronisations"] == batch["downloads"] == 0
    assert batch["uploads"] <= 1  # the outputs themselves


def test_a_batch_from_device_memory_copies_nothing(scenario):
    batch = scenario("batches")["resnet18"]["memory"]["batch"]
    assert batch["synchronisations"] == batch["downloads"] == batch["uploads"] == 0


def test_a_batch_that_is_stored_waits_for_its_outputs_only(scenario):
    batch = scenario("batches")["resnet18"]["computed"]["batch"]
    assert batch["synchronisations"] <= 1
    assert batch["downloads"] <= 1


def test_a_batch_that_is_evaluated_waits_for_nothing(scenario):
    batch = scenario("batches")["resnet18"]["evaluation"]["batch"]
    assert batch["synchronisations"] == batch["uploads"] == batch["downloads"] == 0


@pytest.mark.parametrize(
    ("source", "launches", "network_calls"),
    [("computed", 144, 28), ("files", 81, 13), ("memory", 81, 13), ("evaluation", 85, 20)],
)
def test_a_batch_launches_no_more_than_it_did(scenario, source, launches, network_calls):
    """With torch 2.14; other versions may split operations otherwise, hence the tenth."""
    batch = scenario("batches")["resnet18"][source]["batch"]
    assert batch["launches"] <= 1.1 * launches
    assert batch["network_calls"] <= network_calls


def test_an_epoch_from_files_waits_only_at_its_end(scenario):
    """Losses and predictions of the epoch, its targets, and the starting trial's few copies."""
    assert scenario("batches")["resnet18"]["files"]["epoch"]["synchronisations"] <= 6


def test_a_graph_launches_a_batch_at_once(scenario):
    """The batch and its labels are copied on the device; a wait would end the capture with an error."""
    seen = scenario("graphs", STUDY_CUDA_GRAPHS="1")
    assert seen["plain"]["launches"] >= 60
    assert seen["graph"]["replays"] == 1
    assert seen["graph"]["launches"] + seen["graph"]["synchronisations"] + seen["graph"]["uploads"] <= 2


def test_a_pass_that_waits_runs_without_a_graph(scenario):
    seen = scenario("graphs", STUDY_CUDA_GRAPHS="1")
    assert "captur" in seen["failure"]
    assert seen["waits"]["synchronisations"] >= 2
    assert seen["epochs"] == 1


def test_device_memory_keeps_its_epoch_where_three_do_not_fit(scenario):
    seen = scenario("partial")
    assert seen["used"] == [seen["whole"]] * 2
    assert seen["whole"] <= seen["limit"]


def test_augmentation_waits_only_at_its_end(scenario):
    """The images and the end of part 4 of the benchmark; torchvision alone would wait 42 times."""
    assert scenario("augmentation")["synchronisations"] <= 2


def test_lack_of_device_memory_is_named_and_leaves_nothing(scenario):
    seen = scenario("out_of_memory", NULL_CUDA_TOTAL_BYTES="120000000")
    assert seen["failure"]["out_of_memory"]
    assert seen["left_bytes"] == 0
    assert seen["epochs"] == [1, 2]


def test_a_trial_on_a_gpu_continues_from_its_checkpoint(scenario):
    assert scenario("checkpoints")["epochs"] == [[1, 2], [2]]


def test_trials_of_a_search_share_one_gpu_by_default(on_null_gpu, tmp_path):
    flags = [*["--search", "resnet18", "--data", "digits", "--weights", "none"], "--trials", 2, "--image-size", 32]
    flags += ["--pruner", "none"]  # a trial that gets no result may learn nothing
    environment = {**on_null_gpu, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(study_command(*flags), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0.5 GPU per trial, 2 at a time" in done.stdout
    assert "2 complete, 0 pruned, 0 failed" in done.stdout
