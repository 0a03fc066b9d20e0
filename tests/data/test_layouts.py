"""Folders and CSV files in the layouts that people have, and what is said of those that cannot be read."""

import os
import socket
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.images import noise

from study.data.images import Dataset
from study.data.layouts import list_source
from study.data.sources import load_dataset
from study.data.splits import split_validation
from study.errors import ConfigError, DataError


def load(source: Path, **options: object) -> Dataset:
    return load_dataset(
        str(source), **{"fraction": 1.0, "seed": 0, "image_size": 56, "data_dir": Path("/nowhere"), **options}
    )


def write(root: Path, *folders: str, count: int = 5) -> Path:
    """Write PNG images into folders below `root`, `count` each and each different."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(noise(8, 8, zlib.crc32(f"{folder} {index}".encode()))).save(root / folder / f"{index}.png")
    return root


def write_table(root: Path, text: str, name: str = "labels.csv") -> Path:
    """Write a CSV file beside images `0.png` to `9.png`."""
    write(root, ".", count=10)
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def splits(dataset: Dataset) -> dict[str, int]:
    return dict(Counter(row.split for row in dataset.rows))


# Folders


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_search_validates_on_the_folder_given(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, *(f"{split}/{label}" for split in ("train", "test", name) for label in "ab"))
    dataset = load(root)
    train, validation = split_validation(dataset, fraction=0.1, seed=0)
    assert train is dataset.train
    assert validation is dataset.validation
    assert splits(dataset) == {"train": 10, "val": 10, "test": 10}


@pytest.mark.parametrize("folders", [("a", "b"), ("train/a", "train/b"), ("train/a", "train/b", "valid/a", "valid/b")])
def test_test_images_are_held_out_where_none_are_given(folders: tuple[str, ...], tmp_path: Path) -> None:
    dataset = load(write(tmp_path, *folders, count=10))
    assert np.bincount(dataset.train.labels).tolist() == [8, 8]
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]
    assert dataset.found.test_fraction == 0.2


def test_held_out_test_images_depend_on_the_seed_alone(tmp_path: Path) -> None:
    root = write(tmp_path, "a", "b", count=10)
    once, again, other = (load(root, seed=seed).test.fingerprint for seed in (0, 0, 1))
    assert once == again
    assert once != other


def test_test_fraction_is_the_share_held_out(tmp_path: Path) -> None:
    dataset = load(write(tmp_path, "a", "b", count=10), test_fraction=0.5)
    assert (len(dataset.train), len(dataset.test), dataset.found.test_fraction) == (10, 10, 0.5)


def test_test_fraction_is_refused_where_test_images_are(tmp_path: Path) -> None:
    root = write(tmp_path, "train/a", "train/b", "test/a", "test/b")
    with pytest.raises(ConfigError, match=r"--test-fraction: must be left out, since .* has test images, but got 0\.3"):
        load(root, test_fraction=0.3)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("test/a", "test/b"), r"but has test/ and no train/\. Name the folder of training images train/\."),
        (("Train/a", "Train/b", "Test/a"), r"but has Test/, Train/\. Rename Test/ to test/, Train/ to train/\."),
        (("a/train", "a/test", "b/train", "b/test"), r"but has a/test/\. Turn the folders round: test/a/\."),
        (("pets/train/a", "pets/test/a"), r"but has only pets/\. Use --data .*/pets\."),
        ((".",), r"but has 5 images without folders\. Put the images of each class into a folder of its own\."),
        ((), r"but has no folder\."),
        (("train", "test"), r"train/ must hold one folder for each class, but has none\."),
        (("train/a", "train/b", "val/a", "val/b", "dev/a"), r"one folder of validation images, but dev/|val/ stands"),
        (
            ("train/a", "train/b", "val/a", "val/c"),
            r"train and val must hold the same classes, but got 'b' \(not in val",
        ),
    ],
)
def test_other_layouts_are_refused_with_the_nearest(folders: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list_source(write(tmp_path, *folders))


@pytest.mark.parametrize("classes", [("rain", "sun"), ("car", "plane", "train")])
def test_classes_may_be_called_nearly_like_splits(classes: tuple[str, ...], tmp_path: Path) -> None:
    assert {row.label for row in list_source(write(tmp_path, *classes)).rows} == {*classes}


def test_everything_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    root = write(tmp_path, "train/a", "train/b", "test/a", "test/b", "extra/a")
    (root / "train/a/__MACOSX").mkdir()
    for name in ("train/a/Thumbs.db", "train/a/.DS_Store", "train/a/notes.txt", "train/b/list.txt", "README"):
        (root / name).write_text("no image")
    Image.fromarray(noise(8, 8)).save(root / "train/stray.png")
    os.mkfifo(root / "train/b/x.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "train/b/socket"))
        assert dict(list_source(root).left_out) == {
            "hidden or system file": 3,
            "no image (.txt)": 2,
            "no image (without ending)": 1,
            "image outside the class folders": 1,
            "in extra/, which is no split": 5,
            "pipe, socket or device": 2,
        }


@pytest.mark.parametrize("name", ["x.jfif", "x.jpe", "x.jpg_large", "x", "x.txt"])
def test_an_image_is_recognised_by_its_content(name: str, tmp_path: Path) -> None:
    root = write(tmp_path, "a", "b")
    Image.fromarray(noise(8, 8)).save(root / "a" / name, format="JPEG")
    assert len(list_source(root).rows) == 11


def test_unicode_forms_of_a_class_are_one(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    dataset = load(write(tmp_path, f"train/{composed}", "train/犬", f"test/{decomposed}", "test/犬"))
    assert dataset.classes == (composed, "犬")


@pytest.mark.parametrize("name", [b"caf\xe9", b"a/caf\xe9.png"])
def test_names_that_are_not_utf8_are_refused(name: bytes, tmp_path: Path) -> None:
    root = write(tmp_path, "a", "b")
    path = root / os.fsdecode(name)
    if path.suffix:
        (root / "a/0.png").rename(path)
    else:
        (root / "a").rename(path)
    with pytest.raises(DataError, match=r"names must be UTF-8, but got b'.*caf\\xe9.*\. Rename"):
        list_source(root)


# Broken files


def test_all_broken_files_are_named_at_once(tmp_path: Path) -> None:
    root = write(tmp_path, "a", "b")
    (root / "a/1.png").write_bytes(b"")
    (root / "b/2.png").write_bytes((root / "b/2.png").read_bytes()[:60])
    (root / "b/3.png").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError) as caught:
        load(root)
    *files, total = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in files] == [f"{root}/a/1.png", f"{root}/b/3.png", f"{root}/b/2.png"]
    assert "Git LFS" in files[1]
    assert total.startswith("3 files are broken.") and "--skip-broken" in total


def test_broken_files_beyond_ten_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, "a", "b", count=20)
    for path in (root / "a").glob("1*.png"):
        path.write_bytes(b"")
    (root / "b/1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"\n… and 2 more\.\n12 files are broken\."):
        load(root)


def test_skip_broken_leaves_them_out_and_records_it(tmp_path: Path) -> None:
    root = write(tmp_path, "train/a", "train/b", "test/a", "test/b")
    (root / "train/a/1.png").write_bytes(b"")
    (root / "test/b/2.png").write_bytes((root / "test/b/2.png").read_bytes()[:60])
    dataset = load(root, skip_broken=True)
    assert splits(dataset) == {"train": 9, "test": 9}
    assert [len(dataset.train), len(dataset.test)] == [9, 9]
    assert dataset.found.skip_broken and dataset.found.left_out == {"broken": 2}
    for row, pixels in zip(dataset.rows, [*dataset.train.pixels, *dataset.test.pixels], strict=True):
        assert (np.asarray(Image.open(row.path)).transpose(2, 0, 1) == pixels).all()


def test_skip_broken_keeps_every_class(tmp_path: Path) -> None:
    root = write(tmp_path, "train/a", "train/b", "test/a", "test/b", count=1)
    (root / "test/b/0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"every class must have a whole image in test, but 'b' has none"):
        load(root, skip_broken=True)


# CSV files


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_table_gives_labels_splits_and_groups(separator: str, tmp_path: Path) -> None:
    lines = [f"{index}.png,{'ab'[index % 2]},{'dev' if index < 4 else 'train'},g{index}" for index in range(10)]
    table = write_table(tmp_path, "\ufeff" + "\n".join(["Path,label,split,group", *lines]).replace(",", separator))
    rows = list_source(table).rows
    assert [row.path for row in rows] == [tmp_path / f"{index}.png" for index in range(10)]
    assert [row.label for row in rows] == list("ababababab")
    assert [row.split for row in rows] == ["val"] * 4 + ["train"] * 6
    assert [row.group for row in rows] == [f"g{index}" for index in range(10)]


def test_groups_of_a_table_stay_on_one_side(tmp_path: Path) -> None:
    lines = [f"{index}.png,{'ab'[index % 2]},patient {index // 2}" for index in range(10)]
    dataset = load(write_table(tmp_path, "\n".join(["path,label,group", *lines])), test_fraction=0.4)
    sides = {row.group: {other.split for other in dataset.rows if other.group == row.group} for row in dataset.rows}
    assert all(len(side) == 1 for side in sides.values())
    assert splits(dataset) == {"train": 6, "test": 4}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("0101010101", "; 50% of the images held out for testing in whole groups, "),
        (" " * 10, "; 20% of each class held out for testing, "),
    ],
)
def test_layout_tells_the_real_share_of_test_images(groups: str, said: str, tmp_path: Path) -> None:
    lines = [f"{index}.png,{'aaaaabbbbb'[index]},{group}" for index, group in enumerate(groups)]
    dataset = load(write_table(tmp_path, "\n".join(["path,label,group", *lines])))
    assert said in dict(dataset.found.describe(searched=True))["layout"]


def test_table_without_splits_is_named_after_folder_and_file(tmp_path: Path) -> None:
    lines = [f"{index}.png,{'ab'[index % 2]},Oslo" for index in range(10)]
    dataset = load(write_table(tmp_path / "eyes", "\n".join(["path,label,site", *lines])))
    assert dataset.name == "eyes-labels"
    assert dataset.found.layout == "labels.csv with path, label, without site"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nno.png,a\n1.png,b", r"labels\.csv: line 2: path: there is no file .*no\.png\."),
        ("path,label\n0.png,\n1.png,b", r"labels\.csv: line 2: label: must not be empty\."),
        ("path,label\n,a\n1.png,b", r"labels\.csv: line 2: path: must not be empty\."),
        (
            "path,label,split\n0.png,a,eval\n1.png,b,test",
            r"line 2: split: must be train, test, val, .*but got 'eval'\.",
        ),
        (
            "path,label,split\n0.png,a,\n1.png,b,test",
            r"split: must be given for all images or for none, but is missing for 1 of 2\.",
        ),
        ("path,label,spilt\n0.png,a,train", r"column 'spilt': is no column of such a file\. Did you mean 'split'\?"),
        ("path,label,groups\n0.png,a,p7", r"column 'groups': is no column of such a file\. Did you mean 'group'\?"),
        (
            "path,label,split\n0.png,a,val\n1.png,b,test",
            r"split: must say train for some images, but has only test, val",
        ),
        ("path,label\n0.png,a\n./0.png,b", r"line 3: path: \./0\.png stands in line 2 already\."),
        (
            "path,label,split,group\n0.png,a,train,p7\n1.png,a,test,p7\n",
            r"group 'p7': must stand in one split, but is in test and train\.",
        ),
        ("file,label\n0.png,a", r"must have the columns path and label, .* but path is missing among file, label\."),
        ("", r"path and label are missing among none\."),
        ("path,label,split\n", r"labels\.csv: must list images, but has a heading only\. Add a line for each image\."),
        (
            "path,label, Label\n0.png,a,b",
            r"labels\.csv: line 1: must name each column once, but names label several times\. Rename",
        ),
        ("path,label\n0.png,a\n1.png,a", r"must hold 2 classes or more, but got 'a'\."),
    ],
)
def test_table_refuses_bad_lines(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        list_source(write_table(tmp_path, text))


def test_table_lists_ten_mistakes_and_counts_the_others(tmp_path: Path) -> None:
    text = "path,label\n" + "".join(f"no{index}.png,a\n" for index in range(12))
    with pytest.raises(DataError, match=r"2 more mistakes\.$") as caught:
        list_source(write_table(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 11


# What the reader chose for all images, once


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 65535, None), (200, 800, [200, 800]), (0, 4095, [0, 4095]), (7, 8, None)]
)
def test_grey_of_16_bits_has_its_own_range(low: int, high: int, expected: list[int] | None, tmp_path: Path) -> None:
    root = write(tmp_path, "train/a", "train/b", "test/a", "test/b", count=0)
    for seed, folder in enumerate(sorted(root.glob("*/*"))):
        values = np.random.default_rng(seed).integers(low, high, (8, 8)).astype(np.uint16)
        values[0, :4], values[0, 4:] = low, high
        if expected is None and high < 100:
            values[:] = low
        Image.fromarray(values).save(folder / "x.png")
    dataset = load(root)
    assert dataset.found.grey_range == expected
    if high > 100:
        assert (dataset.train.pixels.min(), dataset.train.pixels.max()) == (0, 255)


@pytest.mark.parametrize(("size", "cropped"), [((40, 10), 0.75), ((30, 20), 1 / 3), ((20, 20), 0.0)])
def test_share_that_cropping_cuts_off_is_found(size: tuple[int, int], cropped: float, tmp_path: Path) -> None:
    root = write(tmp_path, "a", "b", count=0)
    for folder in root.iterdir():
        for index in range(3):
            Image.fromarray(noise(size[1], size[0], index)).save(folder / f"{index}.png")
    assert load(root).found.cropped == pytest.approx(cropped)
    assert any(name == "cropping" for name, _ in load(root).found.describe(searched=True)) == (cropped > 0.5)
    assert load(root, fit="pad").found.cropped == 0


def test_uncropped_images_are_stored_as_squares(tmp_path: Path) -> None:
    root = write(tmp_path, "a", "b", count=0)
    for folder in root.iterdir():
        for index in range(3):
            Image.fromarray(noise(10, 40, index)).save(folder / f"{index}.png")
    assert load(root).train.pixels.shape[2:] == (10, 40)
    padded, squashed = (load(root, fit=fit).train.pixels for fit in ("pad", "squash"))
    assert padded.shape[2:] == squashed.shape[2:] == (40, 40)
    assert (padded[:, :, :15] == 0).all() and (padded[:, :, 25:] == 0).all()
    assert padded[:, :, 15:25].mean() > 100 and squashed[:, :, :15].mean() > 100
