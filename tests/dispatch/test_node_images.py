"""A node that does not see the study's decoded images gets them once, in pieces, into its own store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
from support.images import make_images, store_images

from study.data import stored_pixels
from study.data.images import Images
from study.data.pixel_store import PixelStore, Unusable
from study.data.stored_pixels import StoredPixels
from study.dispatch.cluster import ray_session
from study.dispatch.node_images import copy_images, serve_images, with_local_images
from study.errors import DataError
from study.training.run_trial import Inputs


@pytest.fixture
def stored(tmp_path: Path) -> Images:
    return store_images(make_images(20, side=8), tmp_path / "pixels").take(np.array([9, 3, 17, 4]))


def elsewhere(images: Images) -> Images:
    """Return images as a node sees them that does not have their file."""
    assert isinstance(images.pixels, StoredPixels)
    return Images(replace(images.pixels, file=Path("/nowhere/pixels")), images.labels)


def make_inputs(train: Images, test: Images | None = None) -> Inputs:
    return Inputs(train, None, test, 3, {}, "fp32")


def test_node_copies_what_it_lacks_in_pieces(stored: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_pixels, "WINDOW_BYTES", 2 * stored.pixels.image_bytes)
    asked: list[list[int]] = []

    def fetch(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return replace(stored.pixels, rows=rows)[:]

    there, store = elsewhere(stored), PixelStore(tmp_path / "images")
    copy = copy_images(there.take(np.array([0])).pixels, store, fetch)
    assert np.array_equal(copy[:], stored.pixels[:1])
    for _ in range(2):
        assert np.array_equal(copy_images(there.pixels, store, fetch)[:], stored.pixels[:])
    assert [len(rows) for rows in asked] == [1, 2, 1]


def test_node_without_room_cannot_copy(stored: Images, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"images: must have room, but lacks [\d,]+ bytes"):
        copy_images(elsewhere(stored).pixels, PixelStore(tmp_path / "images", 4096), lambda rows: stored.pixels[:])


def test_inputs_that_the_node_can_read_stay_as_they_are(stored: Images) -> None:
    memory = make_images(4)
    local = with_local_images(make_inputs(stored, memory))
    assert (local.train, local.test) == (stored, memory)


@pytest.mark.slow
def test_node_gets_images_from_the_studys_node(stored: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def read(inputs: Inputs) -> tuple[str, np.ndarray]:
        local = with_local_images(inputs)
        return str(local.train.pixels.file), local.train.pixels[:]

    with ray_session(None, verbose=False):
        with pytest.raises(DataError, match="nowhere/pixels: must hold the decoded images"):
            with_local_images(make_inputs(elsewhere(stored)))
        servers = serve_images([stored, None, stored])
        assert len(servers) == 1
        file, pixels = ray.get(ray.remote(read).remote(make_inputs(elsewhere(stored))))
        assert file.startswith(str(tmp_path / "cache"))
        assert np.array_equal(pixels, stored.pixels[:])
