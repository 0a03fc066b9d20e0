"""Provide the tests' shared fixtures: small images and recipes, and a cache directory for each test."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.images import make_images, write_image_folder

from study.config.load_toml import load_baseline
from study.config.recipe import Recipe
from study.data.images import Images
from study.exit_codes import SIGNALS
from study.run import main

# Set before Ray and MLflow are imported: no telemetry.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Tests share the cores with the processes that they start. Threads that wait by spinning take the cores from those
# processes: two studies at once on two cores took five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that runs the tests in the background makes them, and all processes that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test, and the processes that it starts, a cache directory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """Undo what a command did that ran in this process: interrupted, it and all processes it starts ignore signals."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `study.run` in this process, for commands that end before Ray starts; a new process takes 10 s more."""

    def run(room: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
        monkeypatch.chdir(room)
        command = [*map(str, arguments)]
        capfd.readouterr()
        try:
            code = main(command)
        except SystemExit as ended:
            code = ended.code
        return subprocess.CompletedProcess(command, code, *capfd.readouterr())

    return run


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """Make a small variant of the baseline's recipe: resnet18 at 32 px, two epochs; keywords change fields."""

    def make(**changes: object) -> Recipe:
        small = {"model": "resnet18", "image_size": 32, "epochs": 2, "batch_size": 16}
        return Recipe(**{**load_baseline().values, **small, **changes})

    return make


@pytest.fixture(name="make_images")
def _make_images() -> Callable[..., Images]:
    """Make images of classes that can be told apart."""
    return make_images


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Write a folder of PNG files of two classes: train/<class>/ with 8 images each, test/<class>/ with 4 each."""
    return write_image_folder(tmp_path / "pets")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the threads of small networks wait for each other rather than compute."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Mount a file system that is too small for a segment of features or a checkpoint.

    It lies outside pytest's directories: one that a killed run leaves mounted could not be removed from there, which
    fails the next run.
    """
    disk = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True).returncode:
            pytest.skip("only root may mount a small file system")
        yield disk
        subprocess.run(["umount", disk], check=True)
    finally:
        disk.rmdir()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated database of MLflow, made once, for copies: migrations take seconds."""
    from study.tracking.client import connect, local_uri

    folder = tmp_path_factory.mktemp("store")
    connect(local_uri(folder), verbose=False)
    return folder / "mlflow.db"
