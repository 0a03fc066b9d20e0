"""Define the errors that are no bugs of this program; each message is one line for the user, or one a mistake.

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
import re
from collections.abc import Collection

_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")


class StudyError(Exception):
    """Base of all errors whose message alone shows the user what to do."""


class ConfigError(StudyError, ValueError):
    """Flags, keys or combinations of settings break rules: one line for each mistake.

    It is a ValueError, so that pydantic goes on to the next field when a rule of ours raises it.
    """


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
    return without_credentials(str(error).partition("\n")[0]) or type(error).__name__


def without_credentials(text: str) -> str:
    """Return a text without the user names and passwords in its URIs, so that files and screens may show it."""
    return _CREDENTIALS.sub("", text)


def nearest_name(name: str, known: Collection[str]) -> str | None:
    """Return the known name that `name` may be a misspelling of; None if none is near."""
    near = difflib.get_close_matches(name, sorted(known))
    # Prefer a near name with the same letters: the most frequent typing error swaps two letters.
    return min(near, key=lambda candidate: sorted(candidate) != sorted(name), default=None)


def unknown_name(kind: str, name: str, known: Collection[str]) -> str:
    """Build the message that `name` is no known `kind`; suggest the nearest known name."""
    nearest = nearest_name(name, known)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(sorted(known))}."
