"""Studies of another user, whose home, shared memory and number of processes are small or closed."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

USER = "54321"
"""Number of a user that no computer has."""
BASELINE = "-m study.run --baseline resnet18 --demo --fraction 0.05 --epochs 1 --image-size 32 --cpus-per-trial 1"
AS_USER = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps=-all,+dac_read_search"]
AS_USER += ["--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search"]
AS_USER += ["--securebits=+no_setuid_fixup"]  # without it, access(2) ignores the right to read everything
"""Command of a user who may read everything, since the tests' Python may lie in a closed home, but is not root."""


@pytest.fixture
def home():
    """Make a home that its user may not write, with a directory `work` in it that they may; the path is short."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/var/tmp") as directory:
        home = Path(directory)
        for name in ("work", "tmp"):
            (home / name).mkdir()
            os.chmod(home / name, 0o777)
        os.chmod(home, 0o755)
        yield home


@pytest.fixture
def run_as_user(home):
    """Return a function that runs a small baseline as that user, below other commands such as prlimit."""
    probe = subprocess.run([*AS_USER, "touch", str(home / "probe")], capture_output=True, text=True)
    if "Permission denied" not in probe.stderr:
        pytest.skip("only root may run a command as another user")
    environment = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])

    def run(*before: str) -> "subprocess.CompletedProcess[str]":
        command = [*before, *AS_USER, sys.executable, *BASELINE.split()]
        return subprocess.run(command, cwd=home / "work", env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_study_ends_whole_in_closed_surroundings(run_as_user, home):
    """The home is read-only, shared memory holds 1 MB, and 260 processes and threads may run."""
    before = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m,mode=1777 none /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("this computer does not allow a small /dev/shm for one process")
    done = run_as_user(*before, "prlimit", "--nproc=260")
    assert done.returncode == 0, done.stderr
    assert list((home / "work").glob("mlruns/studies/*/report.html"))
    left = [path.name for path in (home / "tmp").iterdir()]
    assert left == [f"torchinductor_uid_{USER}"]  # torch makes this one, empty, when it is imported


@pytest.mark.slow
def test_too_few_processes_are_named_in_one_line(run_as_user, home):
    done = run_as_user("prlimit", "--nproc=200")
    assert done.returncode == 1
    assert re.fullmatch(r"study: local Ray: needs 250 processes and threads, but `ulimit -u` .*\n", done.stderr)
    assert not (home / "work" / "mlruns").exists()
