"""The Dockerfile's command runs as it does in a container whose root is read-only, also without Docker."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
READ_ONLY = 'mount --make-rprivate / && mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
"""Shell script of a process with its own mounts: everything but the directory $0 and other disks is read-only."""


def instruction(name: str) -> str:
    """Return the argument of an instruction that the Dockerfile has once."""
    (argument,) = re.findall(rf"^{name} (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return argument


@pytest.fixture
def work():
    """Make a directory with a path as short as a container's, which Ray's sockets need."""
    with tempfile.TemporaryDirectory(prefix="w", dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def run_in_container(work):
    """Return a function that runs the image's entry point with other arguments, below a read-only root."""
    unshare = ["unshare", "--mount", "bash", "-c", READ_ONLY, str(work)]
    probe = subprocess.run([*unshare, "touch", str(ROOT / "probe")], capture_output=True, text=True)
    if "Read-only file system" not in probe.stderr:
        pytest.skip("only root may mount the root directory read-only for one process")
    variables = re.findall(r"(\w+)=(\S+)", instruction("ENV"))
    environment = {name: value.replace(instruction("WORKDIR"), str(work)) for name, value in variables}
    environment |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        program, *options = json.loads(instruction("ENTRYPOINT"))
        assert program == "python"
        command = [*unshare, sys.executable, *options, *arguments]
        return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_image_runs_its_command_below_a_read_only_root(run_in_container, work):
    command = json.loads(instruction("CMD"))
    done = run_in_container(*command, *shlex.split("--fraction 0.1 --epochs 1 --image-size 32"))
    assert done.returncode == 0, done.stderr
    assert {path.name for path in work.iterdir()} == {"mlruns", ".cache", ".config"}


@pytest.mark.parametrize(
    "command", re.findall(r"^docker run .*", (ROOT / "docs/containers.md").read_text(), re.MULTILINE)
)
def test_documented_directory_is_the_one_that_is_written(command):
    assert f'-v "$PWD:{instruction("WORKDIR")}" ' in command
