"""Evaluations are equal if their results are."""

import dataclasses

from study.results.metrics import Evaluation


def test_evaluations_are_equal_whatever_they_took():
    first = Evaluation(loss=1.0, confusion=[[1]], predictions=[0], seconds=1.0)
    assert first == dataclasses.replace(first, seconds=2.0)
