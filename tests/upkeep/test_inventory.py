"""The table of studies says what each of them has found."""

import shutil
from pathlib import Path

import pytest

from study.upkeep.inventory import describe

RECORDS = Path(__file__).parents[1] / "records"


@pytest.mark.parametrize(
    ("name", "best", "test"),
    [
        ("baseline", "", "mobilenet_v3_small 9.72%, resnet18 48.61%"),
        ("search", "68.97%", "baseline 61.81%"),
        ("killed", "58.62%", ""),
    ],
)
def test_table_names_the_recipe_that_the_study_answers_with(name, best, test, tmp_path):
    """The winner's accuracy would say nothing of the model that a search keeps where it is not shown to be better."""
    entry = describe(shutil.copytree(RECORDS / name, tmp_path / name))
    assert (entry.best, entry.test) == (best, test)
