"""The file behind a record: an Optuna journal in which each step of a study stands whole, or not at all.

Whatever moment a process dies at, opening the file again gives the state after the last whole step. Knows lines and
steps, nothing of what they say.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from study.errors import RecordError

UNFINISHED = "unfinished"
"""Key in a line whose step goes on with the next line; Optuna passes over keys that it does not know."""


class Journal(BaseJournalBackend):
    """An Optuna journal with one writer, who holds the study's lock.

    Optuna writes a line for each change: proposing a trial takes a dozen. Between two of them the study is in no state
    that it could go on from, so the lines of a step are written at once, and the end of a file without its last line
    is not read.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Read a journal, or begin one where there is no file and it may be written.

        Args:
            path: of the file.
            writable: cut off the step that a crash has left unfinished.

        Raises:
            RecordError: it cannot be read or written, or was damaged; a damaged file stays as it is.
        """
        self._path = path
        self._writable = writable
        self._held: list[dict[str, Any]] | None = None
        try:
            if writable:
                path.touch()
            content = path.read_bytes()
            self._logs, self._bytes = _parse(path, content)
            if writable and self._bytes < len(content):
                os.truncate(path, self._bytes)
        except OSError as error:
            raise self._failure(error) from None
        self._first = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Write all that happens inside at once, when it ends; nothing if it raises. Steps within count as one.

        Raises:
            RecordError: the file cannot be written; nothing of the step is in it.
        """
        if self._held is not None:
            yield
            return
        self._held = []
        try:
            yield
            held = self._held
        finally:
            self._held = None
        if held:
            self._write(held)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield what Optuna has not read yet, and forget it: its storage keeps the state."""
        unread = self._logs[log_number_from - self._first :]
        self._first, self._logs = log_number_from + len(unread), []
        yield from unread

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep lines for the end of the step, or write them if there is none."""
        logs = json.loads(json.dumps(logs))  # what is in memory is what the next to open the file will read
        if self._held is None:
            self._write(logs)
        else:
            self._held += logs
        self._logs += logs

    def _write(self, logs: list[dict[str, Any]]) -> None:
        *others, last = logs
        lines = [*({**log, UNFINISHED: True} for log in others), last]
        content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        try:
            with open(self._path, "ab", buffering=0) as file:
                written = 0
                while written < len(content):
                    written += file.write(content[written:])
                os.fsync(file.fileno())
        except OSError as error:
            os.truncate(self._path, self._bytes)
            raise self._failure(error) from None
        self._bytes += len(content)

    def _failure(self, error: OSError) -> RecordError:
        rule = "must be readable and writable" if self._writable else "must be readable"
        return RecordError(
            f"{self._path}: {rule}, but got: {error.strerror}. What was recorded is safe; mend it, and --resume."
        )


def _parse(path: Path, content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of all whole steps, and how many bytes they take."""
    logs: list[dict[str, Any]] = []
    step: list[dict[str, Any]] = []
    end = whole = 0
    *lines, torn = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            log = json.loads(line)
            unfinished = log.get(UNFINISHED, False)
        except (ValueError, AttributeError):
            raise _damage(path, number) from None
        step.append(log)
        if not unfinished:
            logs += step
            step, whole = [], end
    if torn and not whole:
        raise _damage(path, len(lines) + 1)  # a study has its first step whole before it has its name
    return logs, whole


def _damage(path: Path, number: int) -> RecordError:
    return RecordError(
        f"{path}: line {number} must be a JSON object, but is damaged. Nothing was changed; restore the file from a"
        " copy, or begin a new study."
    )
