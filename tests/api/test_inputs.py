"""Images and tables in memory become files that a study can read, once."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from study.api.inputs import to_image, write_images
from study.data.image_files import read_image
from study.data.layouts import list_source
from study.errors import DataError


def pictures(number, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, 6, 8, 3), np.uint8)


def test_arrays_come_back_pixel_for_pixel(tmp_path):
    images = pictures(4)
    file = write_images({"train": (images[:2], [0, 1]), "test": (images[2:], [1, 0])}, tmp_path)
    rows = list_source(file).rows
    assert [(row.label, row.split) for row in rows] == [("0", "train"), ("1", "train"), ("1", "test"), ("0", "test")]
    read = np.stack([read_image(row.path, (8, 6)) for row in rows])
    np.testing.assert_array_equal(read, images.transpose(0, 3, 1, 2))


def test_numbers_as_labels_keep_their_order(tmp_path):
    rows = list_source(write_images((pictures(11), np.arange(11)), tmp_path)).rows
    assert sorted({row.label for row in rows}) == [f"{label:02}" for label in range(11)]


def test_pil_images_and_names_are_taken(tmp_path):
    images = [Image.fromarray(one) for one in pictures(2)]
    rows = list_source(write_images((images, ["cat", "dog"]), tmp_path)).rows
    assert [(row.label, row.split) for row in rows] == [("cat", ""), ("dog", "")]


def test_equal_images_are_written_once_others_apart(tmp_path):
    files = [write_images((pictures(2, seed), ["a", "b"]), tmp_path) for seed in (0, 0, 1)]
    assert files[0] == files[1] != files[2]
    assert len([*(tmp_path / "inputs").iterdir()]) == 2


def test_table_keeps_files_labels_splits_and_groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, image in enumerate(pictures(4)):
        Image.fromarray(image).save(f"{number}.png")
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(4)],
            "label": [3, 4, 3, 4],
            "split": ["train", "train", "test", "test"],
            "group": ["a", None, "b", "c"],
            "age": [1, 2, 3, 4],
        }
    )
    rows = list_source(write_images(table, tmp_path / "mlruns")).rows
    assert [(row.path, row.label, row.split, row.group) for row in (rows[0], rows[1])] == [
        (tmp_path / "0.png", "3", "train", "a"),
        (tmp_path / "1.png", "4", "train", ""),
    ]
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((pictures(2), ["a"]), "data: needs a label for each image, but got 2 images, 1 labels."),
        ((pictures(2) / 255, [0, 1]), "data: images must be PIL images or uint8 arrays"),
        ((pictures(2), [0, "a"]), "data: labels must be all names, or all whole numbers from 0"),
        ((iter(pictures(2)), ["a", "b"]), "data: images and labels must be lists or arrays, but got iterator"),
        ((pictures(3), ["a", "", "b"]), "data: row 1: label: must not be empty."),
        ((pictures(2), ["a", "a"]), "data: must hold 2 classes or more, but got 'a'."),
        ({"training": (pictures(2), [0, 1])}, "data: splits must be train, val and test, but got training."),
        ({"train": 3}, "data['train']: must be a folder, a CSV file, a DataFrame"),
        (
            pd.DataFrame([["a", "cat", "dog"]], columns=["path", "label", "label"]),
            "data: must have each column once, but has label several times.",
        ),
        (pd.DataFrame({"path": ["a"]}), "data: must have the columns path and label, but lacks label among path."),
        (pd.DataFrame({"path": [__file__, None], "label": ["a", "b"]}), "data: row 1: path: must not be empty."),
        (pd.DataFrame({"path": ["/no.png"], "label": ["a"]}), "data: row 0: path: there is no file /no.png."),
    ],
)
def test_unfit_data_is_refused_and_leaves_nothing(data, message, tmp_path):
    with pytest.raises(DataError) as caught:
        write_images(data, tmp_path / "mlruns")
    assert str(caught.value).startswith(message)
    assert not [*tmp_path.iterdir()]


def test_to_image_takes_grey_arrays():
    assert to_image(np.zeros((4, 5), np.uint8), "one").size == (5, 4)
