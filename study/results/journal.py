"""Store an Optuna journal in a file that holds each step of a study completely or not at all.

Whenever a process dies, opening the file again gives the state after the last complete step. A thread brings the steps
to the disk, so that no trial waits for the disk; a computer that loses its power may lose the steps of that moment.
This module knows lines and steps, but not their content.
"""

import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from study.errors import RecordError
from study.files import flush_and_close

UNFINISHED = "unfinished"
"""Key of a line whose step continues on the next line; Optuna ignores keys that it does not know."""


class Journal(BaseJournalBackend):
    """An Optuna journal with one writer: the process that holds the study's lock.

    Optuna writes one line for each change, and a proposal takes a dozen lines. A study cannot be resumed from a state
    between two of these lines. So all lines of a step are written at once, and a step without its last line is not
    read.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Read a journal; if it is writable and there is no file, create one.

        Args:
            path: path of the file.
            writable: whether this process may write; if so, an unfinished last step is cut off.

        Raises:
            RecordError: the file cannot be read or written, or is damaged; a damaged file is not changed.
        """
        self._path = path
        self._writable = writable
        self._held: list[dict[str, Any]] | None = None
        self._disk = ThreadPoolExecutor(1, "journal")
        self._syncs: deque[Future[None]] = deque()
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
        """Write all changes made inside at once, at the end; write nothing if the body raises.

        A step inside another step belongs to the outer one.

        Raises:
            RecordError: the file cannot be written, and holds no part of the step; or an earlier step has not reached
                the disk.
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
        """Yield the lines that Optuna has not read yet, and drop them: Optuna's storage keeps the state."""
        unread = self._logs[log_number_from - self._first :]
        self._first, self._logs = log_number_from + len(unread), []
        yield from unread

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Hold lines until the current step ends; without a step, write them now."""
        logs = json.loads(json.dumps(logs))  # so that the memory holds what the next process will read
        if self._held is None:
            self._write(logs)
        else:
            self._held += logs
        self._logs += logs

    def settle(self) -> None:
        """Wait until all steps are on the disk.

        Raises:
            RecordError: a step has not reached the disk.
        """
        self._check_syncs(wait=True)

    def _check_syncs(self, *, wait: bool) -> None:
        try:
            while self._syncs and (wait or self._syncs[0].done()):
                self._syncs.popleft().result()
        except OSError as error:
            raise self._failure(error) from None

    def _write(self, logs: list[dict[str, Any]]) -> None:
        self._check_syncs(wait=False)
        *others, last = logs
        lines = [*({**log, UNFINISHED: True} for log in others), last]
        content = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        try:
            with open(self._path, "ab", buffering=0) as file:
                written = 0
                while written < len(content):
                    written += file.write(content[written:])
                self._syncs.append(self._disk.submit(flush_and_close, os.dup(file.fileno())))
        except OSError as error:
            with suppress(OSError):  # the file may be gone, if its directory was moved
                os.truncate(self._path, self._bytes)
            raise self._failure(error) from None
        self._bytes += len(content)

    def _failure(self, error: OSError) -> RecordError:
        rule = "must be readable and writable" if self._writable else "must be readable"
        return RecordError(
            f"{self._path}: {rule}, but got: {error.strerror}."
            " Recorded results are safe. Fix the cause, then continue with --resume."
        )


def _parse(path: Path, content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of all complete steps, and their total size in bytes."""
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
        raise _damage(path, len(lines) + 1)  # the first step is complete before the study's directory gets its name
    return logs, whole


def _damage(path: Path, number: int) -> RecordError:
    return RecordError(
        f"{path}: line {number} must be a JSON object, but is damaged. The file was not changed. Restore it from a"
        " copy, or begin a new study."
    )
