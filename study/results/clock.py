"""Count the seconds that a study has run, over all its sessions, whatever the computer's clock does meanwhile."""

import math
import time
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

BEAT_S = 60.0
"""Seconds between two heartbeats of a session: at most this much time of a killed session is not counted."""


class StudyClock:
    """Seconds that a study has run: those of earlier sessions, and this session's by a monotonic clock.

    So neither a computer's sleep nor a change of its clock counts.
    """

    def __init__(self, before_s: float) -> None:
        """Begin a session after sessions of `before_s` seconds."""
        self._before_s = before_s
        self._opened = self._beaten = time.monotonic()

    @property
    def spent_s(self) -> float:
        """Seconds that the study has run, summed over all sessions."""
        return self._before_s + time.monotonic() - self._opened

    def beat(self) -> bool:
        """Return whether a heartbeat is due, which is so once in BEAT_S seconds."""
        due = time.monotonic() - self._beaten >= BEAT_S
        if due:
            self._beaten = time.monotonic()
        return due


def measure_sessions(noted: Mapping[str, Any], moments: Iterable[int]) -> float:
    """Return the seconds of all sessions of a study of version 0.1.0, which recorded moments of the clock only.

    Each session counts from its start to its last recorded moment.

    Args:
        noted: what the record notes about the study; starts of sessions among it, and moments at which they lived.
        moments: recorded moments of all trials, in ms.
    """
    known = [*moments, *(value for key, value in noted.items() if key.startswith("seen/"))]
    begun = sorted(value for key, value in noted.items() if key.startswith("session/"))
    spent_ms = 0.0
    for start, end in pairwise([*begun, math.inf]):
        spent_ms += max((moment - start for moment in known if start <= moment < end), default=0)
    return spent_ms / 1000
