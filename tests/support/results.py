"""Hold results of trials for tests."""

from study.results.metrics import Evaluation

TEST = Evaluation(loss=1.0, confusion=[[3, 1], [0, 4]], predictions=[0, 0, 0, 1, 1, 1, 1, 1])
"""A test of eight images of two classes: 7 of them are right."""
