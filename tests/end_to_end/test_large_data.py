"""A study on decoded images from the store gives the results of one on images in memory."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import study_command

from study.data.pixel_store import PixelStore
from study.data.sources import find_images
from study.results.record import Record

pytestmark = pytest.mark.slow

SMALL = ["--baseline", "resnet18", "--data", "pets", "--weights", "none", "--image-size", "32", "--epochs", "1"]


def run(room: Path, *arguments: str) -> str:
    environment = {**os.environ, "XDG_CACHE_HOME": str(room / "cache")}
    done = subprocess.run(
        study_command(*arguments), cwd=room, capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(room: Path, study: str) -> tuple[object, ...]:
    record = Record.read(room / "mlruns" / "studies" / study)
    (trial,) = record.all_trials()
    return record.manifest.data_fingerprint, trial.test, [epoch.train_loss for epoch in trial.epochs]


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A directory with more small images than stay in memory."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(520):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index}.png")
    return tmp_path


def test_study_has_the_same_results_from_the_store(room: Path) -> None:
    run(room, *SMALL, "--name", "stored")
    assert [*room.glob("cache/study/images/*/*/pixels")]
    run(room, *SMALL, "--name", "memory", "--no-cache")
    assert results(room, "stored") == results(room, "memory")
    record = Record.read(room / "mlruns" / "studies" / "stored")
    assert find_images(record.manifest, PixelStore(room / "cache" / "study" / "images"))
