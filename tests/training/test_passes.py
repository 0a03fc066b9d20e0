"""Passes of a batch, and whether a replayed one gives what a plain one gives."""

import pytest
import torch

from study.training.passes import same_values

ONE, NAN = torch.tensor([1.0]), torch.tensor([float("nan")])


@pytest.mark.parametrize(
    ("some", "others", "same"),
    [
        ([ONE, None], [ONE.clone(), None], True),
        ([NAN], [NAN.clone()], True),
        ([ONE], [ONE + 1e-7], False),
        ([ONE, ONE], [ONE, NAN], False),
        ([ONE, None], [ONE, ONE], False),
    ],
)
def test_same_values_notices_any_difference(some, others, same):
    assert same_values(some, others) is same
