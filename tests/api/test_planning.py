"""Studies get names that nothing else has."""

import pytest

from study.api.planning import default_name
from study.config.plan import STUDY_NAME


def test_default_names_never_collide():
    assert len({default_name("baseline") for _ in range(1000)}) == 1000


@pytest.mark.parametrize("space", ["my space", "поиск", "x" * 100, "..", "a/b"])
def test_default_name_is_allowed_for_every_space(space):
    assert STUDY_NAME.fullmatch(default_name(space))
