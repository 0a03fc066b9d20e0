"""Run the chaos test in short: each fault strikes one short study. `run.py` runs the full test."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from faults import FAULTS, run_reference
from room import SHORT

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow warns while the test reads its runs


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run_reference(tmp_path_factory.mktemp("reference"), SHORT)


def can_mount(folder: Path) -> bool:
    if shutil.which("mount") is None:
        return False
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], capture_output=True)
    if mounted.returncode == 0:
        subprocess.run(["umount", str(folder)], check=True)
    return mounted.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_study_that_is_struck_ends_exact(name, reference, tmp_path):
    if name == "disk" and not can_mount(tmp_path):
        pytest.skip("needs the right to mount a small file system")
    fault, _ = FAULTS[name]
    outcome = fault(tmp_path, random.Random(f"short {name}"), reference)
    assert outcome.faults == []
    assert outcome.strikes
