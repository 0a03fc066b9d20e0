"""Sources of images: what is loaded, which fraction is kept, and how each unfit source is refused."""

import errno
import functools
import hashlib
import http.server
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import noise
from torchvision.datasets import CIFAR10

from study.data.image_files import read_image
from study.data.images import Dataset, fingerprint
from study.data.sources import load_dataset
from study.errors import ConfigError, DataError


def load(source: object, fraction: float = 1.0, seed: int = 0, image_size: int = 56, data_dir: object = "") -> Dataset:
    return load_dataset(str(source), fraction=fraction, seed=seed, image_size=image_size, data_dir=Path(str(data_dir)))


def write_folder(
    root: Path, classes: str = "ab", train: int = 4, test: int = 2, size: tuple[int, int] = (16, 16)
) -> Path:
    """Write random PNG images, `train` and `test` of each class, of size (width, height)."""
    for part, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                seed = 1000 * label + index + 500 * (part == "test")
                Image.fromarray(noise(size[1], size[0], seed)).save(folder / f"{index:03}.png")
    return root


# load_dataset: source and fraction


def test_data_imports_neither_torch_nor_sklearn() -> None:
    code = "import sys, study.data; print([name for name in ('torch', 'sklearn') if name in sys.modules])"
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_load_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pets: must be a folder of images, or a CSV file"):
        load(tmp_path / "pets")


def test_load_refuses_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"pets\.zip: must be a folder of images, or a CSV file"):
        load(tmp_path / "pets.zip")


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_load_refuses_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match=rf"--fraction: must be in \(0, 1\], but got {fraction}\."):
        load("digits", fraction)


# Digits


def test_digits_are_rgb_of_32_pixels() -> None:
    digits = load("digits")
    assert digits.train.pixels.shape == (1438, 3, 32, 32)
    assert digits.test.pixels.shape == (359, 3, 32, 32)
    assert digits.train.pixels.dtype == np.uint8
    assert digits.train.pixels.flags.c_contiguous
    assert (digits.train.pixels.min(), digits.train.pixels.max()) == (0, 255)


def test_digits_have_ten_classes_in_both_parts() -> None:
    digits = load("digits")
    assert digits.classes == tuple("0123456789")
    assert set(digits.train.labels) == set(digits.test.labels) == set(range(10))
    assert digits.train.labels.dtype == np.int64


def test_digits_test_images_do_not_depend_on_the_seed() -> None:
    assert fingerprint(load("digits", seed=0).test) == fingerprint(load("digits", seed=1).test)


def test_digits_fraction_is_a_function_of_the_seed() -> None:
    once, again, other = (load("digits", 0.2, seed) for seed in (0, 0, 1))
    assert fingerprint(once.train, once.test) == fingerprint(again.train, again.test)
    assert fingerprint(once.train) != fingerprint(other.train)
    assert (len(once.train), len(once.test), once.fraction) == (288, 72, 0.2)


# CIFAR-10, through torchvision's own loader


def write_cifar10(folder: Path, per_class: int) -> dict[str, object]:
    """Write a small archive in CIFAR-10's format, and return the attributes that make torchvision accept it."""
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    batches = folder / CIFAR10.base_folder
    batches.mkdir(parents=True)
    for seed, name in enumerate(names):
        random = np.random.default_rng(seed)
        labels = random.permutation(np.repeat(np.arange(10), per_class)).tolist()
        batch = {"data": random.integers(0, 256, (len(labels), 3072), dtype=np.uint8), "labels": labels}
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))
    with tarfile.open(folder / CIFAR10.filename, "w:gz") as archive:
        archive.add(batches, CIFAR10.base_folder)
    sums = [[name, hashlib.md5((batches / name).read_bytes()).hexdigest()] for name in [*names, "batches.meta"]]
    return {
        "tgz_md5": hashlib.md5((folder / CIFAR10.filename).read_bytes()).hexdigest(),
        "train_list": sums[:5],
        "test_list": sums[5:6],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": sums[6][1]},
    }


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small CIFAR-10, as archive and unpacked, and no network to fetch it by."""
    folder = tmp_path / "published"
    for name, value in write_cifar10(folder, per_class=4).items():
        monkeypatch.setattr(CIFAR10, name, value)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{port}/{CIFAR10.filename}")
    return folder


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def online(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    handler = functools.partial(QuietHandler, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR10.filename}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("online")
def test_cifar10_is_downloaded_as_published(published: Path, tmp_path: Path) -> None:
    cifar10 = load("cifar10", data_dir=tmp_path / "data")
    batches = [
        pickle.loads((published / CIFAR10.base_folder / name).read_bytes())
        for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]
    ]
    for part, files in ((cifar10.train, batches[:5]), (cifar10.test, batches[5:])):
        assert part.pixels.flags.c_contiguous
        assert (part.pixels.reshape(-1, 3072) == np.concatenate([batch["data"] for batch in files])).all()
        assert part.labels.tolist() == [label for batch in files for label in batch["labels"]]
    assert (cifar10.name, cifar10.classes) == ("cifar10", tuple("abcdefghij"))


def test_cifar10_needs_no_network_where_its_archive_lies(published: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (published / CIFAR10.filename).rename(data_dir / CIFAR10.filename)
    assert len(load("cifar10", data_dir=data_dir).train) == 200


def test_cifar10_needs_no_network_where_it_is_unpacked(published: Path) -> None:
    (published / CIFAR10.filename).unlink()
    assert len(load("cifar10", data_dir=published).test) == 40


def test_cifar10_fraction_is_exact_and_balanced(published: Path) -> None:
    part = load("cifar10", 0.25, data_dir=published)
    assert np.bincount(part.train.labels).tolist() == [5] * 10
    assert np.bincount(part.test.labels).tolist() == [1] * 10


def test_cifar10_fraction_keeps_the_order_of_the_source(published: Path) -> None:
    whole, part = load("cifar10", data_dir=published), load("cifar10", 0.5, data_dir=published)
    position = {image.tobytes(): index for index, image in enumerate(whole.train.pixels)}
    kept = [position[image.tobytes()] for image in part.train.pixels]
    assert kept == sorted(kept)
    assert (whole.train.labels[kept] == part.train.labels).all()


def test_cifar10_refuses_a_fraction_that_empties_a_class(published: Path) -> None:
    with pytest.raises(DataError, match=r"cifar10/test: .* --fraction 0\.1 leaves none of the 4 of class"):
        load("cifar10", 0.1, data_dir=published)


@pytest.mark.usefixtures("published")
def test_cifar10_without_network_tells_the_ways_round(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    ways = rf"refused.* Put cifar-10-python\.tar\.gz into {data_dir}, or use --data PATH or --demo\."
    with pytest.raises(DataError, match=ways):
        load("cifar10", data_dir=data_dir)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("before", [None, 7.0])
def test_cifar10_restores_the_socket_timeout(before: float | None, tmp_path: Path) -> None:
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before)
    try:
        with pytest.raises(DataError, match="download"):
            load("cifar10", data_dir=tmp_path / "data")
        assert socket.getdefaulttimeout() == before
    finally:
        socket.setdefaulttimeout(previous)


def test_cifar10_gives_up_a_server_that_stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that times out after half a minute or less is told like any other failure of the network."""
    timeouts = []

    def stall(self: CIFAR10) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(CIFAR10, "download", stall)
    with pytest.raises(DataError, match=r"download from .* failed \(timed out\)\. Put"):
        load("cifar10", data_dir=tmp_path)
    assert 0 < timeouts[0] <= 30


@pytest.mark.usefixtures("published")
def test_cifar10_without_network_names_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(b"half an archive")
    with pytest.raises(DataError, match=rf"failed .*, and {tmp_path / CIFAR10.filename} is damaged\."):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.usefixtures("online")
def test_cifar10_names_an_archive_downloaded_wrongly(published: Path, tmp_path: Path) -> None:
    (published / CIFAR10.filename).write_bytes(b"<html>please log in</html>")
    with pytest.raises(DataError, match=rf"{tmp_path / 'data' / CIFAR10.filename}: .* MD5"):
        load("cifar10", data_dir=tmp_path / "data")


def test_cifar10_names_a_damaged_file(published: Path) -> None:
    meta = published / CIFAR10.base_folder / "batches.meta"
    meta.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{meta}: .* MD5"):
        load("cifar10", data_dir=published)


@pytest.mark.usefixtures("published")
def test_cifar10_names_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    occupied = tmp_path / "data"
    occupied.write_bytes(b"a file")
    with pytest.raises(DataError, match=rf"{occupied}: must be readable and writable"):
        load("cifar10", data_dir=occupied)


# Image folders: what is read


def test_folder_gives_its_images_in_order_of_name(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", classes="ba")
    pets = load(root)
    paths = sorted((root / "train").glob("*/*"))
    assert pets.train.pixels.transpose(0, 2, 3, 1).tolist() == [np.asarray(Image.open(path)).tolist() for path in paths]
    assert pets.train.labels.tolist() == [0] * 4 + [1] * 4
    assert (pets.name, pets.classes, pets.fraction) == ("pets", ("a", "b"), 1.0)


def test_folder_fraction_is_stratified_by_the_seed(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=8, test=4)
    once, again, other = (load(root, 0.5, seed) for seed in (0, 0, 1))
    assert fingerprint(once.train, once.test) == fingerprint(again.train, again.test)
    assert fingerprint(once.train) != fingerprint(other.train)
    assert np.bincount(once.train.labels).tolist() == [4, 4]
    assert np.bincount(once.test.labels).tolist() == [2, 2]


def test_folder_decodes_only_the_fraction_kept(tmp_path: Path) -> None:
    """Every file that the fraction leaves out is broken, and none of them is noticed."""
    root = write_folder(tmp_path, train=8, test=4)
    kept = {image.tobytes() for part in (load(root, 0.5).train, load(root, 0.5).test) for image in part.pixels}
    for path in root.glob("*/*/*"):
        if read_image(path, (16, 16)).tobytes() not in kept:
            path.write_bytes(b"broken")
    assert {image.tobytes() for image in load(root, 0.5).train.pixels} <= kept


def test_folder_reads_nested_folders_and_all_extensions(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1)
    (root / "train/a/2024/may").mkdir(parents=True)
    extensions = ["jpg", "JPEG", "bmp", "gif", "webp", "tif", "tiff", "ppm"]
    for extension in extensions:
        Image.fromarray(noise(16, 16)).save(root / f"train/a/2024/may/x.{extension}")
    Image.fromarray(noise(16, 16)).convert("L").save(root / "train/a/2024/x.pgm")
    assert np.bincount(load(root).train.labels).tolist() == [1 + len(extensions) + 1, 1]


def test_folder_ignores_hidden_and_other_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train/.cache").mkdir()
    (root / "train/a/.thumbs").mkdir()
    for name in ("train/a/._000.png", "train/a/.thumbs/000.png", "train/a/notes.txt", "train/README.md"):
        (root / name).write_bytes(b"no image")
    assert len(load(root).train) == 8


def test_folder_with_many_classes(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes="abcdefghijklmnopqrstuvwxyz", train=1, test=1, size=(8, 8))
    assert load(root).train.labels.tolist() == list(range(26))


# Image folders: the size they are stored at (image_size 56 stores 64 pixels)


@pytest.mark.parametrize(
    ("train_size", "test_size", "stored"),
    [
        ((40, 40), (40, 40), (40, 40)),
        ((90, 30), (90, 30), (90, 30)),
        ((90, 80), (90, 80), (64, 64)),
        ((50, 30), (40, 20), (30, 30)),
        ((20, 20), (100, 90), (64, 64)),
    ],
    ids=["small", "small and oblong", "large", "small, not alike", "one part large"],
)
def test_folder_brings_train_and_test_to_one_size(
    train_size: tuple[int, int], test_size: tuple[int, int], stored: tuple[int, int], tmp_path: Path
) -> None:
    write_folder(tmp_path, train=1, test=0, size=train_size)
    for name in "ab":
        Image.fromarray(noise(*test_size[::-1])).save(tmp_path / "test" / name / "x.png")
    pets = load(tmp_path)
    assert pets.train.pixels.shape == pets.test.pixels.shape == (2, 3, stored[1], stored[0])


def test_folder_counts_the_size_after_rotation(tmp_path: Path) -> None:
    """Photos that EXIF turns keep their whole height where all are turned alike."""
    root = write_folder(tmp_path, train=0, test=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for extension, path in zip(("jpg", "tif", "png", "webp"), sorted(root.glob("*/*")), strict=True):
        Image.fromarray(noise(20, 40)).save(path / f"x.{extension}", exif=exif)
    assert load(root).train.pixels.shape == (2, 3, 40, 20)


# Image folders that are refused, each with its place


def test_folder_refuses_a_single_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pets: must hold 2 classes or more, but got 'a'\."):
        load(write_folder(tmp_path / "pets", classes="a"))


def test_folder_lists_the_classes_that_differ(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes="abc")
    (root / "test/c").rename(root / "test/d")
    with pytest.raises(
        DataError,
        match=r"train and test must hold the same classes, but got 'c' \(not in test\), 'd' \(not in train\)\.",
    ):
        load(root)


def test_folder_names_a_class_of_no_image(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "test/c").mkdir()
    (root / "train/c").mkdir()
    with pytest.raises(DataError, match=rf"{root}/train/c: must hold an image, but has none"):
        load(root)


def test_folder_refuses_a_fraction_that_empties_a_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pets/test: .* --fraction 0\.2 leaves none of the 2 of class 'b'\."):
        load(write_folder(tmp_path / "pets", train=5), 0.2)


def test_folder_names_what_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path)
    scan = os.scandir

    def refuse_a(path: Path) -> object:  # root, whom no mode keeps out, runs the tests too
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse_a)
    with pytest.raises(DataError, match=r"train/a: must be readable: Permission denied"):
        load(root)


def test_folder_names_a_link_to_nothing(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train/a/loop.png").symlink_to(root / "train/a/loop.png")
    with pytest.raises(DataError, match=r"train/a/loop\.png: must be a whole, readable image"):
        load(root)


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_folder_names_a_file_that_is_no_image(content: bytes, tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train/b/x.png").write_bytes(content)
    with pytest.raises(
        DataError,
        match=rf"^{root}/train/b/x\.png: must be an image \(PNG, JPEG.*\), but holds [^\n]*\n1 file is broken",
    ):
        load(root)


@pytest.mark.parametrize("extension", ["png", "jpg", "gif", "bmp", "webp", "tif", "ppm"])
def test_folder_names_a_truncated_image(extension: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    path = root / f"test/a/x.{extension}"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(DataError, match=rf"^{path}: must be [^\n]*\n1 file is broken[^\n]*$"):
        load(root)


@pytest.mark.parametrize("limit", [300, 100])
def test_folder_names_a_decompression_bomb(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path, size=(8, 8))
    Image.fromarray(noise(20, 20)).save(root / "train/a/bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"train/a/bomb\.png: .* decompression bomb"):
        load(root)


def test_sizes_of_files_are_described(image_folder):
    assert load(image_folder).found.sizes == "all 32×32 px"
    Image.new("RGB", (400, 300)).save(image_folder / "train" / "cat" / "0.png")
    assert load(image_folder).found.sizes == "32×32 to 400×300 px; 96% are 32×32 px"
