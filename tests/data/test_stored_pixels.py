"""Images in a file are indexed like an array, and what was computed from them is kept."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from support.images import make_images, store_images

from study.data import stored_pixels
from study.data.images import Images, fingerprint
from study.data.stored_pixels import FACTS, HEADER_BYTES, new_header
from study.errors import DataError


@pytest.fixture
def images() -> Images:
    return make_images(12, side=7)


@pytest.fixture
def stored(images: Images, tmp_path: Path) -> Images:
    return store_images(images, tmp_path / "pixels")


@pytest.mark.parametrize("chosen", [3, -1, slice(2, 5), slice(None), np.array([7, 0, 7]), np.empty(0, np.int64)])
def test_stored_pixels_are_indexed_like_an_array(images: Images, stored: Images, chosen: object) -> None:
    assert np.array_equal(stored.pixels[chosen], images.pixels[chosen])
    assert stored.pixels[chosen].shape == images.pixels[chosen].shape


def test_stored_pixels_have_the_shape_of_an_array(images: Images, stored: Images) -> None:
    assert (stored.pixels.shape, stored.pixels.nbytes) == (images.pixels.shape, images.pixels.nbytes)


def test_stored_images_take_other_rows_without_reading(images: Images, stored: Images) -> None:
    chosen = np.array([5, 2, 9])
    stored.pixels.file.rename(stored.pixels.file.with_name("elsewhere"))
    taken = stored.take(chosen)
    taken.pixels.file.with_name("elsewhere").rename(taken.pixels.file)
    assert np.array_equal(taken.pixels[:], images.take(chosen).pixels)
    assert np.array_equal(taken.labels, images.labels[chosen])


def test_fingerprint_is_the_same_from_a_file(images: Images, stored: Images) -> None:
    for some in (np.arange(12), np.array([3, 1])):
        assert fingerprint(stored.take(some), classes="ab") == fingerprint(images.take(some), classes="ab")


def test_fingerprint_tells_how_many_images_it_has_read(stored: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_pixels, "WINDOW_BYTES", 5 * stored.pixels.image_bytes)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        fingerprint(stored, watch=lambda done, of: told.append((done, of)))
    assert told == [(5, 12), (10, 12), (12, 12)]


def test_fingerprint_of_a_file_is_computed_once(stored: Images, tmp_path: Path) -> None:
    first = fingerprint(stored)
    with open(stored.pixels.file, "r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(bytes(12))
    assert fingerprint(stored) == first
    (tmp_path / FACTS).write_text("{damaged")
    assert fingerprint(stored) != first


def test_recall_rows_computes_each_image_once(images: Images, stored: Images) -> None:
    seen, told = [], []

    def sums(part: np.ndarray) -> np.ndarray:
        seen.append(len(part))
        return part.reshape(len(part), -1).sum(axis=1).astype(np.int64)

    def recall(some: Images) -> list[int]:
        return some.pixels.recall_rows("sums", np.int64, sums, lambda *counts: told.append(counts)).tolist()

    expected = images.pixels.reshape(12, -1).sum(axis=1).tolist()
    assert recall(stored.take(np.array([4, 2]))) == [expected[4], expected[2]]
    assert recall(stored) == expected
    assert (seen, told) == ([2, 10], [(2, 2), (10, 10)])


def test_stored_pixels_travel_without_their_images(stored: Images) -> None:
    sent = pickle.dumps(stored.pixels)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)[:], stored.pixels[:])


def test_stored_pixels_say_that_their_file_was_cut_short(stored: Images) -> None:
    os.truncate(stored.pixels.file, HEADER_BYTES + 5 * stored.pixels.image_bytes)
    with pytest.raises(DataError, match=r"pixels: must hold [\d,]+ bytes, but was cut short\. Start again"):
        stored.pixels[:]


def test_stored_pixels_say_that_their_file_is_gone(stored: Images) -> None:
    stored.pixels.file.unlink()
    with pytest.raises(DataError, match=r"pixels: must hold the decoded images, but: No such file"):
        stored.pixels[0]


def test_stored_pixels_refuse_another_file(stored: Images) -> None:
    stored.pixels.file.write_bytes(new_header({}) + stored.pixels.file.read_bytes()[HEADER_BYTES:])
    with pytest.raises(DataError, match=r"pixels: must be the decoded images of this study, but is another file"):
        stored.pixels[0]
