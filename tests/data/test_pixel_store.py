"""A pack holds what was decoded through crashes, is checked when it is opened, and is evicted when it is not used."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from filelock import Timeout

from study.data.pixel_store import HEADERS, INDEX, PIXELS, PixelStore, Unusable, identify
from study.data.stored_pixels import HEADER_BYTES

ABOUT = {"size": [5, 7]}
IMAGE_BYTES = 3 * 5 * 7
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 7, 5), np.uint8)
FILES = [bytes([number]) * 16 for number in range(1, 7)]


def fill(store: PixelStore, source: str = "pets", count: int = 6) -> Path:
    """Put images into the pack of a source, as far as they lack, and return the pack's directory."""
    with store.open(source, ABOUT) as pack, pack.writing():
        for file, image in zip(FILES[:count], IMAGES[:count], strict=True):
            if pack.rows_of([file])[0] < 0:
                pack.add(file, image)
        return pack.folder


def read(store: PixelStore, source: str = "pets") -> list[int]:
    """Return the rows of all files, once the images of these rows are as they were."""
    with store.open(source, ABOUT) as pack:
        rows = pack.rows_of(FILES)
        assert np.array_equal(pack.pixels(rows[rows >= 0])[:], IMAGES[rows >= 0])
        return rows.tolist()


@pytest.fixture
def store(tmp_path: Path) -> PixelStore:
    return PixelStore(tmp_path / "images")


def test_pack_keeps_images_by_the_identity_of_files(store: PixelStore) -> None:
    fill(store)
    assert read(store) == [0, 1, 2, 3, 4, 5]
    assert read(store, "cars") == [-1] * 6


def test_pack_grows_by_what_it_lacks(store: PixelStore) -> None:
    fill(store, count=2)
    assert read(store) == [0, 1, -1, -1, -1, -1]
    fill(store)
    assert read(store) == [0, 1, 2, 3, 4, 5]


def test_pack_keeps_what_was_added_before_an_interruption(store: PixelStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.open("pets", ABOUT) as pack, pack.writing():
        pack.add(FILES[0], IMAGES[0])
        raise KeyboardInterrupt
    assert read(store) == [0, -1, -1, -1, -1, -1]


def test_pack_forgets_rows_that_no_index_names(store: PixelStore) -> None:
    """A process that is killed leaves images behind that are not in the index."""
    folder = fill(store, count=2)
    with open(folder / PIXELS, "ab") as file:
        file.write(bytes(3 * IMAGE_BYTES))
    with open(folder / INDEX, "ab") as index:
        index.write(b"half an entry")
    fill(store)
    assert read(store) == [0, 1, 2, 3, 4, 5]


def test_pack_that_was_cut_short_lacks_the_rest(store: PixelStore) -> None:
    folder = fill(store)
    os.truncate(folder / PIXELS, HEADER_BYTES + 3 * IMAGE_BYTES + 1)
    assert read(store) == [0, 1, 2, -1, -1, -1]
    fill(store)
    assert read(store) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("at", [0, HEADER_BYTES + 2 * IMAGE_BYTES])
def test_pack_that_is_damaged_is_made_anew(store: PixelStore, at: int) -> None:
    folder = fill(store)
    with open(folder / PIXELS, "r+b") as file:
        file.seek(at)
        file.write(b"damaged!")
    with store.open("pets", ABOUT) as pack:
        assert (pack.damaged, pack.images) == (True, 0)
    fill(store)
    assert read(store) == [0, 1, 2, 3, 4, 5]


def test_pack_of_another_version_is_not_read(store: PixelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    monkeypatch.setattr("study.data.pixel_store.FORMAT", 2)
    assert read(store) == [-1] * 6


def test_pack_is_written_by_one_process_at_a_time(store: PixelStore) -> None:
    with store.open("pets", ABOUT) as one, store.open("pets", ABOUT) as other, one.writing():
        one.add(FILES[0], IMAGES[0])
        with pytest.raises(Timeout), other.writing(timeout_s=0):
            pass
    assert read(store)[0] == 0


def test_pack_sees_what_another_process_has_added(store: PixelStore) -> None:
    with store.open("pets", ABOUT) as pack:
        fill(store)
        assert pack.rows_of(FILES[:1]).tolist() == [-1]
        with pack.writing():
            assert pack.rows_of(FILES).tolist() == [0, 1, 2, 3, 4, 5]


def test_pack_that_was_replaced_is_not_written(store: PixelStore) -> None:
    folder = fill(store)
    with store.open("pets", ABOUT) as pack:
        (folder / PIXELS).write_bytes(b"")
        (folder / PIXELS).rename(folder / "gone")
        (folder / PIXELS).write_bytes(b"")
        with pytest.raises(OSError, match="another process") as raised, pack.writing():
            pass
    assert raised.value.errno == errno.ESTALE


def test_reserve_evicts_the_least_recently_used_pack(tmp_path: Path) -> None:
    store = PixelStore(tmp_path, limit_bytes=2 * (HEADER_BYTES + 6 * IMAGE_BYTES))
    for age, name in ((3, "new"), (9, "old")):
        os.utime(fill(store, name), (1e9 - age, 1e9 - age))
    with store.open("next", ABOUT) as pack:
        assert store.reserve(pack, 3) == 0
    assert (read(store, "old")[0], read(store, "new")[0]) == (-1, 0)


def test_reserve_leaves_packs_that_are_used(tmp_path: Path) -> None:
    store = PixelStore(tmp_path, limit_bytes=HEADER_BYTES + 6 * IMAGE_BYTES)
    fill(store, "used")
    with store.open("used", ABOUT), store.open("next", ABOUT) as pack:
        assert store.reserve(pack, 6) == HEADER_BYTES + 6 * IMAGE_BYTES
    assert read(store, "used")[0] == 0


def test_store_in_an_unwritable_place_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Unusable, match=r"file/images: must be writable"),
        PixelStore(tmp_path / "file/images").open("pets", ABOUT),
    ):
        pass


def test_store_recalls_headers_of_unchanged_files(store: PixelStore) -> None:
    store.keep_headers("pets", {FILES[0]: (640, 480, False), FILES[1]: (32, 16, True), b"": (1, 1, False)})
    assert store.recall_headers("pets", FILES) == {FILES[0]: (640, 480, False), FILES[1]: (32, 16, True)}
    (next(store.directory.iterdir()) / HEADERS).write_bytes(b"damaged")
    assert store.recall_headers("pets", FILES) == {}


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    before = identify(file)
    assert identify(file) == before
    file.write_bytes(b"two")
    os.utime(file, ns=times)
    assert identify(file) not in (before, b"")
    assert identify(tmp_path / "none") == b""
