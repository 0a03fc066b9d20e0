"""Shared by the tests: small real images, small recipes, and no way to the network or to the user's own caches."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.images import make_images, write_image_folder

from study.config.load_toml import load_baseline
from study.config.recipe import Recipe
from study.data.images import Images
from study.exit_codes import SIGNALS
from study.run import main

# Before Ray, MLflow and matplotlib are imported: no telemetry, and no talk about what a study sets for itself.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Tests compute beside the processes that they start. Threads that wait for their next work by spinning take the cores
# from those: two studies at once on two cores took five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that runs the tests in the background has told them, and so all that they start, to pass over Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test, and the processes that it starts, a cache directory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., "subprocess.CompletedProcess[str]"]]:
    """Run a command that ends before it starts Ray in this process: of its own, it would import for ten seconds."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def run(room: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
        monkeypatch.chdir(room)
        given = [*map(str, arguments)]
        capfd.readouterr()
        try:
            code = main(given)
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(given, code, *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """The baseline's recipe, made small: resnet18 at 32 px, two epochs; keywords change fields."""

    def make(**changes: object) -> Recipe:
        small = {"model": "resnet18", "image_size": 32, "epochs": 2, "batch_size": 16}
        return Recipe.from_dict({**load_baseline().values, **small, **changes})

    return make


@pytest.fixture(name="make_images")
def _make_images() -> Callable[..., Images]:
    """Make images of classes that can be told apart."""
    return make_images


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of PNG files: train/<class>/* with 8 images a class, test/<class>/* with 4, of two classes."""
    return write_image_folder(tmp_path / "pets")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for less than a segment of features or a checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)
