"""What a trial gets of the machines that there are, and that nobody else gets anything of a local Ray."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from study.dispatch.cluster import (
    PLAIN_ENVIRONMENT,
    TRIAL_ENVIRONMENT,
    Allotment,
    ray_session,
    share_resources,
    usable_cores,
)
from study.errors import ConfigError, StudyError

LOCAL_RAY = """
import json, os, subprocess, sys
from pathlib import Path
from study.dispatch.cluster import ray_session

ALONE = "--disable-frontend"  # Ray starts the dashboard's process in any case, then without anything that serves

with ray_session(None, verbose=False):
    import ray
    stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    code = f"import ray; ray.init(address={ray.get_runtime_context().gcs_address!r}); print(ray.nodes())"
    with_token = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100)
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=100, env=stranger)
    shown = ["ps", "--no-headers", "-ww", "-o", "args", "--ppid", str(os.getpid())]
    children = subprocess.run(shown, capture_output=True)
    processes = children.stdout.decode().splitlines()
    variable = ray.remote(lambda: os.environ.get("MALLOC_ARENA_MAX")).remote()
    assert any("gcs_server" in title for title in processes)
    print(json.dumps({
        "joins with the token": with_token.returncode,
        "joins without": without.returncode,
        "refusal": (without.stdout + without.stderr).decode(),
        "dashboards": [title for title in processes if "dashboard/dashboard.py" in title and ALONE not in title],
        "files": [str(path) for path in Path.home().rglob("*token*")],
        "telemetry": os.environ["RAY_USAGE_STATS_ENABLED"],
        "variable here and in a trial's process": [os.environ.get("MALLOC_ARENA_MAX"), ray.get(variable)],
    }))
"""

TRAINING = """
from dataclasses import replace
from support.images import make_images
from study.compute.hardware import choose_hardware
from study.config.load_toml import baseline_recipe
from study.models.classifier import build
from study.models.state_dict import digest_state
from study.training.loop import train

recipe = replace(baseline_recipe("resnet18"), image_size=64, epochs=2)
images = make_images(96, classes=2)
classifier = build("resnet18", classes=2, unfreeze_depth=2, pretrained=None, seed=0)
losses = [epoch.train_loss for epoch in
          train(classifier, recipe, images, classes=2, seed=0, hardware=choose_hardware("auto"))]
print(losses, digest_state(classifier.network.state_dict()))
"""


def machines(monkeypatch, *nodes):
    """Let Ray have these nodes: (CPU cores, GPUs) each; those without cores do not have the key, as in Ray."""
    found = [{"CPU": float(cpus), "GPU": float(gpus)} for cpus, gpus in nodes]
    resources = [{key: value for key, value in node.items() if value} for node in found]
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": each} for each in resources])


@pytest.mark.parametrize(
    ("nodes", "asked", "given"),
    [
        ([(2, 0)], (None, None, None), Allotment(2, 0, 1)),  # all cores
        ([(8, 0)], (None, None, 4), Allotment(2, 0, 4)),
        ([(8, 0)], (2, None, None), Allotment(2, 0, 4)),
        ([(16, 1)], (None, None, None), Allotment(16, 1, 1)),  # a whole GPU
        ([(16, 1)], (None, 0.25, None), Allotment(4, 0.25, 4)),
        ([(16, 1)], (None, 0.3, None), Allotment(5, 0.3, 3)),
        ([(16, 4)], (None, None, None), Allotment(4, 1, 4)),
        ([(16, 4), (4, 0)], (None, None, None), Allotment(4, 1, 4)),  # a node without a GPU hosts none
        ([(2, 0), (2, 0)], (1, None, None), Allotment(1, 0, 4)),
        ([(0, 0), (4, 0)], (None, None, None), Allotment(4, 0, 1)),  # a head that is for no trials
    ],
)
def test_share_resources_divides_what_there_is(monkeypatch, nodes, asked, given):
    machines(monkeypatch, *nodes)
    assert share_resources(*asked, trials=100) == given


@pytest.mark.parametrize(
    ("nodes", "asked", "trials", "given"),
    [
        ([(16, 1)], (None, None, None), 20, Allotment(4, 0.25, 4)),
        ([(16, 1)], (None, 1, None), 20, Allotment(16, 1, 1)),  # what was asked for
        ([(2, 1)], (None, None, None), 20, Allotment(1, 0.5, 2)),  # a core for each
        ([(16, 1)], (None, None, 2), 20, Allotment(8, 0.5, 2)),
        ([(16, 4)], (None, None, None), 4, Allotment(4, 1, 4)),  # a GPU for each
        ([(16, 0)], (None, None, None), 20, Allotment(16, 0, 1)),
    ],
)
def test_share_resources_lets_trials_share_a_gpu(monkeypatch, nodes, asked, trials, given):
    machines(monkeypatch, *nodes)
    assert share_resources(*asked, trials=trials, per_gpu=4) == given


@pytest.mark.parametrize(
    ("nodes", "asked", "given"),
    [
        ([(8, 0)], (None, None, None), Allotment(2, 0, 4)),
        ([(8, 0)], (None, None, 1), Allotment(8, 0, 1)),  # what was asked for
        ([(8, 0)], (8, None, None), Allotment(8, 0, 1)),
        ([(8, 1)], (None, None, None), Allotment(8, 1, 1)),
        ([(8, 0), (12, 0)], (None, None, None), Allotment(2, 0, 10)),
    ],
)
def test_share_resources_lets_trials_share_cores(monkeypatch, nodes, asked, given):
    machines(monkeypatch, *nodes)
    assert share_resources(*asked, trials=20, on_cores={8: 4}.get) == given


def test_allotment_is_told_in_words():
    assert str(Allotment(1, 0, 2)) == "1 CPU core per trial, 2 at a time"
    assert str(Allotment(4, 0.5, 2)) == "4 CPU cores and 0.5 GPU per trial, 2 at a time"


@pytest.mark.parametrize(
    ("given", "busy", "waits"),
    [
        (Allotment(2, 0, 1), 0.5, True),
        (Allotment(2, 0, 1), 0.4, False),
        (Allotment(2, 1, 1), 2.0, False),  # computes on a GPU
        (Allotment(1, 0, 2), 2.0, False),  # one thread waits for no other
        (Allotment(2, 0, 1), 8.0, True),
    ],
)
def test_threads_wait_for_other_programs_on_all_cores(given, busy, waits):
    assert given.waits_for_others(busy, cores=2) is waits
    assert not given.waits_for_others(busy, cores=64)


def test_share_resources_runs_at_most_all_trials_at_once(monkeypatch):
    machines(monkeypatch, (8, 0))
    assert share_resources(1, None, None, trials=3).concurrent == 3


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        ([(2, 0)], (None, 1, None), "--gpus-per-trial: no node has more than 0 GPU, but got 1."),
        ([(2, 0)], (4, None, None), "--cpus-per-trial: no node has more than 2 CPU cores, but got 4."),
    ],
)
def test_share_resources_names_what_no_node_has(monkeypatch, nodes, asked, message):
    machines(monkeypatch, *nodes)
    with pytest.raises(ConfigError, match=message):
        share_resources(*asked, trials=1)


def test_share_resources_needs_a_node_with_cores(monkeypatch):
    machines(monkeypatch, (0, 0))
    with pytest.raises(StudyError, match="--ray-address: a node must have CPU cores for trials, but none has"):
        share_resources(None, None, None, trials=1)


@pytest.mark.slow
def test_a_local_ray_refuses_strangers_and_tells_nobody(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_RAY], capture_output=True, text=True, env={**environment, "HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["joins with the token"] == 0
    assert found["joins without"] != 0
    assert "token" in found["refusal"].lower()
    assert (found["dashboards"], found["files"], found["telemetry"]) == ([], [], "0")
    assert found["variable here and in a trial's process"] == [None, "1"]


@pytest.mark.slow
def test_local_ray_starts_below_a_long_temporary_directory(tmp_path):
    long = tmp_path / ("a" * 60) / ("b" * 60)
    long.mkdir(parents=True)
    code = "from study.dispatch.cluster import ray_session\nwith ray_session(None, verbose=False) as s: print(s)"
    environment = {**os.environ, "TMPDIR": str(long)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()


@pytest.mark.parametrize(("message", "starts"), [("The node timed out during startup.", 3), ("No room.", 1)])
def test_ray_that_was_too_slow_is_started_again(monkeypatch, message, starts):
    begun = []

    def init(**options):
        begun.append(options)
        raise RuntimeError(message)

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(StudyError, match=re.escape(message)), ray_session(None, verbose=False):
        pass
    assert len(begun) == starts


def test_ray_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    line = r"^local Ray: must start and answer, but got: .*Not a directory.*file.* Set RAY_TMPDIR"
    with pytest.raises(StudyError, match=line), ray_session(None, verbose=False):
        pass


def test_cluster_of_another_ray_is_refused_with_both_versions(monkeypatch):
    def join(**options):
        check_version_info({"ray_version": "2.9.3", "python_version": "3.9.18"}, "node 10.0.0.1")

    monkeypatch.setattr("ray.init", join)
    here = rf"Ray {re.escape(ray.__version__)} with Python {platform.python_version()}"
    line = rf"^--ray-address 10.0.0.1:1: must run {here}, .* but runs Ray 2.9.3 with Python 3.9.18. Install the same"
    with pytest.raises(StudyError, match=line), ray_session("10.0.0.1:1", verbose=False):
        pass


def test_quota_below_one_core_counts_as_one(monkeypatch):
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 0.5)
    assert usable_cores() == 1


def test_whole_cores_are_left_to_ray(monkeypatch):
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 1.5)
    assert usable_cores() is None


@pytest.mark.slow
def test_environment_of_trials_changes_no_result():
    """It lets glibc keep freed memory, and ask for large pages."""
    command = [sys.executable, "-c", TRAINING]
    common = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    plain, tuned = (
        subprocess.run(command, env=common | made, capture_output=True, text=True, check=True).stdout
        for made in (PLAIN_ENVIRONMENT, TRIAL_ENVIRONMENT)
    )
    assert plain == tuned != ""


def test_tunables_of_the_user_are_kept():
    code = "from study.dispatch.cluster import TRIAL_ENVIRONMENT; print(TRIAL_ENVIRONMENT['GLIBC_TUNABLES'])"
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout == "glibc.malloc.check=0:glibc.malloc.hugetlb=1\n"
