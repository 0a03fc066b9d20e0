"""What can go wrong through no fault of ours, each told in one line for people.

StudyError
├── ConfigError      a flag, a file of settings or a combination of them is wrong: exit code 2
├── DataError        images that are missing, unreadable or unfit
├── WeightsError     pretrained weights that are missing, damaged or of another model
├── RecordError      a study's files cannot be written, or are not what they should be
├── TrackingError    MLflow's store cannot be reached or written
└── TrialError       a trial cannot go on; its message becomes the reason in the record

Only the command lines (`run.py`, `predict.py`, `ui.py`, …) catch StudyError. The message has the form
`place: rule, but got value. Hint.`
"""

import difflib
from collections.abc import Iterable


class StudyError(Exception):
    """Any failure whose message alone tells the user what to do."""


class ConfigError(StudyError):
    """A flag, a key or a combination of them breaks a rule."""


class DataError(StudyError):
    """Images are missing, unreadable or unfit for the study."""


class WeightsError(StudyError):
    """Pretrained weights are missing, damaged or of another model."""


class RecordError(StudyError):
    """A study's files cannot be written, or are not what they should be."""


class TrackingError(StudyError):
    """MLflow's store cannot be reached or written."""


class TrialError(StudyError):
    """A trial cannot go on; the message is the reason that the record keeps."""


def first_line(error: Exception) -> str:
    """Return what another library's error says, in a line; its name where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is no `kind`, with the nearest known name as a suggestion."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known)
    # Of the near ones, rather the one with the same letters: most slips of the finger swap two of them.
    nearest = min(near, key=lambda candidate: sorted(candidate) != sorted(name), default=None)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."
