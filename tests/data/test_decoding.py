"""A data set is the same from the store and from memory, its cost is said, and what goes wrong is said in a line."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from support.images import noise

from study.data import decoding
from study.data.audit import audit_images
from study.data.decoding import FIRST, read_ahead
from study.data.images import Dataset
from study.data.pixel_store import INDEX, LOCK, PIXELS, PixelStore
from study.data.sources import load_dataset
from study.data.splits import split_validation
from study.data.stored_pixels import StoredPixels
from study.errors import DataError


@dataclass
class Watched:
    remarks: list[str] = field(default_factory=list)
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    def on_remark(self, name: str, text: str) -> None:
        self.remarks.append(f"{name}: {text}")

    def on_work(self, name: str, done: int, of: int) -> None:
        self.steps.append((name, done, of))


def write_photos(root: Path, each: int = 12) -> Path:
    """Write JPEG files of two classes, of several sizes, into class folders."""
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for index in range(each):
            pixels = noise(20 + index % 3, 24, 100 * label + index)
            Image.fromarray(pixels).save(root / name / f"{index:04}.jpg")
    return root


def load(root: Path, store: PixelStore | None, watch: Watched | None = None, **changes: object) -> Dataset:
    options = {"fraction": 1.0, "seed": 0, "image_size": 16, "data_dir": Path(), **changes}
    return load_dataset(str(root), store=store, watch=watch, **options)


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SMALL_IMAGES", 0)
    monkeypatch.setattr(decoding, "SMALL_BYTES", 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "pets")


@pytest.fixture
def store(tmp_path: Path) -> PixelStore:
    return PixelStore(tmp_path / "images")


def pack_of(store: PixelStore) -> Path:
    (pixels,) = store.directory.glob(f"*/*/{PIXELS}")
    return pixels.parent


def decoded(store: PixelStore) -> int:
    """Return the number of images that were ever decoded into the store's only pack."""
    return (pack_of(store) / INDEX).stat().st_size // 24


def assert_same(one: Dataset, other: Dataset) -> None:
    assert one.fingerprint == other.fingerprint
    assert ([*one.rows], one.found, one.classes) == ([*other.rows], other.found, other.classes)
    for mine, theirs in zip(one.splits.values(), other.splits.values(), strict=True):
        assert np.array_equal(mine.pixels[:], theirs.pixels[:])
        assert np.array_equal(mine.labels, theirs.labels)


def test_dataset_is_the_same_from_the_store(photos: Path, store: PixelStore) -> None:
    memory, first, second = load(photos, None), load(photos, store), load(photos, store)
    assert isinstance(second.train.pixels, StoredPixels)
    assert_same(first, memory)
    assert_same(second, memory)
    assert decoded(store) == 24


def test_splits_and_audits_are_the_same_from_the_store(photos: Path, store: PixelStore) -> None:
    (photos / "dog/copy.jpg").write_bytes((photos / "cat/0000.jpg").read_bytes())
    memory, stored = load(photos, None), load(photos, store)
    for mine, theirs in zip(
        split_validation(stored, fraction=0.3, seed=1), split_validation(memory, fraction=0.3, seed=1), strict=True
    ):
        assert mine.fingerprint == theirs.fingerprint
    audits = [audit_images(dataset) for dataset in (memory, stored, stored)]
    assert audits[0].groups
    assert audits[0].summary() == audits[1].summary() == audits[2].summary()


def test_audit_reads_only_what_is_new(photos: Path, store: PixelStore) -> None:
    audit_images(load(photos, store))
    Image.fromarray(noise(20, 24, 999)).save(photos / "cat/new.jpg")
    watch = Watched()
    audit_images(load(photos, store), watch)
    assert watch.steps == [("audit", 1, 1)]


def test_store_decodes_only_files_that_changed(photos: Path, store: PixelStore) -> None:
    before = load(photos, store)
    Image.fromarray(noise(20, 24, 999)).save(photos / "cat/0000.jpg")
    after = load(photos, store)
    assert decoded(store) == 25
    assert after.fingerprint != before.fingerprint
    assert_same(after, load(photos, None))


def test_store_serves_fractions_and_seeds_from_one_pack(photos: Path, store: PixelStore) -> None:
    load(photos, store)
    for seed in (0, 1):
        half = {"fraction": 0.5, "seed": seed}
        assert_same(load(photos, store, **half), load(photos, None, **half))
    assert decoded(store) == 24


def test_store_forgets_a_file_that_disappeared(photos: Path, store: PixelStore) -> None:
    load(photos, store)
    (photos / "cat/0000.jpg").unlink()
    assert_same(load(photos, store), load(photos, None))


def test_store_leaves_broken_files_out_like_memory(photos: Path, store: PixelStore) -> None:
    (photos / "cat/0002.jpg").write_bytes((photos / "cat/0002.jpg").read_bytes()[:300])
    with pytest.raises(DataError, match=r"0002\.jpg: must be a whole, readable image"):
        load(photos, store)
    for _ in range(2):
        assert_same(load(photos, store, skip_broken=True), load(photos, None, skip_broken=True))


def test_small_data_sets_stay_in_memory(photos: Path, store: PixelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SMALL_IMAGES", 25)
    monkeypatch.setattr(decoding, "SMALL_BYTES", 2**20)
    assert isinstance(load(photos, store).train.pixels, np.ndarray)
    assert not store.directory.exists()


def test_unwritable_store_leaves_images_in_memory(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    watch = Watched()
    assert_same(load(photos, PixelStore(tmp_path / "file/images"), watch), load(photos, None))
    assert len(watch.remarks) == 1
    assert "file/images: must be writable and have room, but got 'Not a directory'" in watch.remarks[0]
    assert "Decoded images are kept in memory" in watch.remarks[0]


def test_full_disk_leaves_images_in_memory(photos: Path, small_disk: Path) -> None:
    watch = Watched()
    assert_same(
        load(photos, PixelStore(small_disk, limit_bytes=10**9), watch, image_size=56), load(photos, None, image_size=56)
    )
    assert len(watch.remarks) == 1
    assert "must have room for" in watch.remarks[0]


def test_disk_that_fills_up_leaves_images_in_memory(
    photos: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes the room after it was found to suffice."""
    monkeypatch.setattr(PixelStore, "reserve", lambda *_: 0)
    (small_disk / "other").write_bytes(bytes(8192))
    watch = Watched()
    dataset = load(photos, PixelStore(small_disk), watch, image_size=56)
    assert_same(dataset, load(photos, None, image_size=56))
    assert "but got 'No space left on device'" in watch.remarks[-1]


def test_lack_of_disk_and_memory_is_one_error(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "free_memory_bytes", lambda: 10)
    with pytest.raises(DataError, match=r"must have room .*24 images of 18×18 px take .* GB .* or lower --fraction"):
        load(photos, PixelStore(tmp_path, limit_bytes=10))
    with pytest.raises(DataError, match=r"without the store .* Leave out --no-cache, or lower --fraction"):
        load(photos, None)


def test_file_that_changes_while_it_is_read_is_named(
    photos: Path, store: PixelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, **options: object) -> np.ndarray:
        if path.name == "0003.jpg":
            os.utime(path)
        return np.zeros((3, 18, 18), np.uint8)

    monkeypatch.setattr(decoding, "read_image", read)
    with pytest.raises(DataError, match=r"0003\.jpg: must not change while the images are read, but did\. Start again"):
        load(photos, store)


def test_file_that_disappears_while_others_are_read_is_named(
    photos: Path, store: PixelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decoding.decode_files

    def lose(*arguments: object, **options: object) -> object:
        (photos / "dog/0001.jpg").unlink()
        return whole(*arguments, **options)

    monkeypatch.setattr("study.data.sources.decode_files", lose)
    with pytest.raises(DataError, match=r"0001\.jpg: must be a whole, readable image, but: No such file"):
        load(photos, store)


def test_damaged_pack_is_decoded_again_with_a_remark(photos: Path, store: PixelStore) -> None:
    load(photos, store)
    pixels = pack_of(store) / PIXELS
    pixels.write_bytes(b"damaged" + pixels.read_bytes()[7:])
    watch = Watched()
    assert_same(load(photos, store, watch), load(photos, None))
    assert watch.remarks == [f"store: {pixels.parent}: was damaged, so the images are decoded again"]


def test_second_study_waits_for_the_first(photos: Path, store: PixelStore) -> None:
    load(photos, store, fraction=0.5)
    watch = Watched()
    with ThreadPoolExecutor() as pool:
        with FileLock(pack_of(store) / LOCK):
            second = pool.submit(load, photos, store, watch)
            while not watch.remarks:
                time.sleep(0.01)
            assert not second.done()
        assert_same(second.result(), load(photos, None))
    assert watch.remarks == [f"store: another process decodes {photos}; this one waits for its images"]


def test_two_studies_at_once_decode_each_image_once(photos: Path, store: PixelStore) -> None:
    with ThreadPoolExecutor() as pool:
        one, other = pool.map(lambda _: load(photos, store), range(2))
    assert_same(one, other)
    assert decoded(store) == 24


def test_cost_is_said_before_most_images_are_decoded(
    tmp_path: Path, store: PixelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "WORTH_SAYING_S", 0.0)
    photos, watch = write_photos(tmp_path / "many", each=FIRST), Watched()
    load(photos, store, watch)
    (remark,) = watch.remarks
    assert remark.startswith(
        f"decode: 200 images to 18×18 px: 0.00 GB on disk in {store.directory}, none in memory, about"
    )
    assert watch.steps[0] == ("decode", FIRST, 200)
    assert watch.steps[-1] == ("decode", 200, 200)


def test_read_ahead_keeps_order_and_stays_bounded() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return -item

    with ThreadPoolExecutor(2) as pool:
        results = read_ahead(pool, work, range(1000))
        assert [next(results) for _ in range(10)] == [-item for item in range(10)]
        results.close()
    assert len(begun) <= 10 + 9


DECODE = """
import sys
from pathlib import Path
from study.data import decoding
from study.data.pixel_store import PixelStore
from study.data.sources import load_dataset
read = decoding.read_image
def slowly(path, **options):
    import time
    time.sleep(0.02)
    return read(path, **options)
decoding.read_image = slowly
decoding.SMALL_IMAGES = 0
class Watch:
    def on_remark(self, name, text): pass
    def on_work(self, name, done, of): print(done, flush=True)
load_dataset(sys.argv[1], fraction=1.0, seed=0, image_size=16, data_dir=Path(), store=PixelStore(Path(sys.argv[2])),
             watch=Watch())
"""


def test_interruption_ends_at_once_and_keeps_what_was_decoded(tmp_path: Path, store: PixelStore) -> None:
    photos = write_photos(tmp_path / "many", each=400)
    command = [sys.executable, "-c", DECODE, photos, store.directory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        done = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert done <= decoded(store) < 800
    assert_same(load(photos, store), load(photos, None))
    assert decoded(store) == 800
