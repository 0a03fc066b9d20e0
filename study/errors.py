"""Define the errors that are no bugs of this program; each message is one line for the user.

StudyError
├── ConfigError      a flag, a settings file or a combination of settings is wrong: exit code 2
├── DataError        images are missing, unreadable or unfit for the study
├── WeightsError     pretrained weights are missing, damaged or made for another model
├── RecordError      a study's files cannot be written, or hold something unexpected
├── TrackingError    MLflow's tracking store cannot be reached or written
└── TrialError       a trial cannot continue; the record keeps the message as the reason

Only the command lines (`run.py`, `predict.py`, `ui.py`, …) catch StudyError. The message has the form
`place: rule, but got value. Hint.`
"""

import difflib
from collections.abc import Iterable


class StudyError(Exception):
    """Base of all errors whose message alone shows the user what to do."""


class ConfigError(StudyError):
    """A flag, a key or a combination of settings breaks a rule."""


class DataError(StudyError):
    """Images are missing, unreadable or unfit for the study."""


class WeightsError(StudyError):
    """Pretrained weights are missing, damaged or made for another model."""


class RecordError(StudyError):
    """A study's files cannot be written, or hold something unexpected."""


class TrackingError(StudyError):
    """MLflow's tracking store cannot be reached or written."""


class TrialError(StudyError):
    """A trial cannot continue; the record keeps the message as the reason."""


def first_line(error: Exception) -> str:
    """Return the first line of another library's error message, or the error's class name if there is no message."""
    return str(error).partition("\n")[0] or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Build the message that `name` is no known `kind`; suggest the nearest known name."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known)
    # Prefer a near name with the same letters: the most frequent typing error swaps two letters.
    nearest = min(near, key=lambda candidate: sorted(candidate) != sorted(name), default=None)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}."
