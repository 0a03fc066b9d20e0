"""Rows are what they were made of, in any order, and take little memory."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from study.data.rows import FileNames, Row, Rows

ROWS = [
    Row(Path("pets/cats/1.jpg"), "cat", "train", "Anna"),
    Row(Path("pets/cats/2.jpg"), "cat", "test"),
    Row(Path("pets/dogs/ümläut 1.jpg"), "dog", "train", "Żaneta"),
    Row(Path("alone.jpg"), "dog"),
]


def test_rows_return_what_they_were_made_of() -> None:
    assert [*Rows(ROWS)] == ROWS
    assert Rows(ROWS)[-1] == ROWS[-1]


def test_rows_take_keeps_the_order_asked_for() -> None:
    taken = Rows(ROWS).take(np.array([2, 0]))
    assert [*taken] == [ROWS[2], ROWS[0]]
    assert taken.groups() == ["Żaneta", "Anna"]


def test_rows_take_sets_the_split() -> None:
    assert {row.split for row in Rows(ROWS).take(np.arange(4), split="val")} == {"val"}


def test_rows_added_stand_behind_the_others() -> None:
    assert [*Rows(ROWS[:1]) + Rows(ROWS[1:])] == ROWS


def test_rows_find_splits_and_labels() -> None:
    rows = Rows(ROWS)
    assert rows.having("train", "").tolist() == [0, 2, 3]
    assert rows.labels(("cat", "dog")).tolist() == [0, 0, 1, 1]
    assert rows.take(np.array([0])).kinds() == {("cat", "train")}


def test_rows_past_the_end_are_refused() -> None:
    with pytest.raises(IndexError):
        Rows(ROWS)[4]


def test_rows_know_names_that_are_no_utf8() -> None:
    odd = Row(Path(os.fsdecode(b"pets/\xff.jpg")), "cat")
    assert Rows(ROWS).is_utf8()
    assert not Rows([odd]).is_utf8()
    assert [*Rows([odd])] == [odd]


def test_file_names_begin_at_the_common_folder() -> None:
    names = FileNames(Rows(ROWS[:3]))
    assert names[1:] == ["cats/2.jpg", "dogs/ümläut 1.jpg"]


def test_rows_take_less_than_100_bytes_an_image() -> None:
    tracemalloc.start()
    rows = Rows(Row(Path(f"/home/someone/pets/train/class{at % 10}/{at:08}.jpg"), f"{at % 10}") for at in range(5000))
    traces = tracemalloc.take_snapshot().traces
    tracemalloc.stop()
    # Paths put their names into a table of Python's own, which may grow by 2 MB meanwhile.
    tables = [trace.size for trace in traces if "pathlib" in trace.traceback[0].filename and trace.size > 1e6]
    used = sum(trace.size for trace in traces) - sum(tables)
    assert 10 < used / len(rows) < 100
