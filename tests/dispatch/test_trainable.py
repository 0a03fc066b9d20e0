"""A trial that can no longer read the study's images ends the study in one line, and the trial runs again later."""

import os
from pathlib import Path

import pytest
from support.images import make_images, store_images

from study.config.plan import Plan
from study.data.stored_pixels import HEADER_BYTES
from study.dispatch import trainable as module
from study.dispatch.trainable import trainable
from study.training.run_trial import Failure, Inputs


@pytest.mark.parametrize(("length", "said"), [(None, "No such file"), (HEADER_BYTES + 5000, "was cut short")])
@pytest.mark.filterwarnings("ignore")
def test_trial_whose_images_are_gone_stops_the_study(
    make_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int | None, said: str
) -> None:
    images = store_images(make_images(20), tmp_path / "pixels")
    os.truncate(tmp_path / "pixels", length) if length else (tmp_path / "pixels").unlink()
    reports = []
    monkeypatch.setattr(module.tune, "report", lambda report: reports.append(report["report"]))
    monkeypatch.setattr("ray.get_actor", _no_actor)
    inputs = Inputs(images, None, None, 3, {"resnet18": None}, "fp32")
    trainable({"plan": Plan(0, "baseline", make_recipe(epochs=1), 0)}, inputs=inputs)
    failure = reports[-1]
    assert isinstance(failure, Failure)
    assert failure.stops_study
    assert said in failure.reason
    assert failure.reason.endswith("Use --resume.")


def _no_actor(name: str) -> None:
    raise ValueError(name)
