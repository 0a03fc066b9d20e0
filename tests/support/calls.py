"""Functions that a study calls in another process, and a call of them at once."""

import contextlib
import os
import pickle
import signal
import time


def call_here(function, /, *args, **kwargs):
    return function(*args, **kwargs)


def die_elsewhere(home):
    """Return "here" in the process `home`, and end any other."""
    if os.getpid() != home:
        os._exit(1)
    return "here"


def hang_elsewhere(home):
    """Return "here" in the process `home`, and stop any other."""
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGSTOP)
    return "here"


def die_answering(home):
    """Return "here" in the process `home`; any other writes half an answer, and ends."""
    if os.getpid() != home:
        for descriptor in range(3, 20):
            with contextlib.suppress(OSError):
                os.write(descriptor, pickle.dumps(bytes(100))[:50])
        os._exit(1)
    return "here"


def print_and_return(value):
    print("noise", flush=True)
    os.write(1, b"more noise")
    return value


def fail(reason):
    raise ValueError(reason)


class TwoPartError(Exception):
    """Error that cannot be unpickled, as those of some libraries."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail_in_two_parts():
    raise TwoPartError("no", "dog")


def sleep_and_return(seconds):
    time.sleep(seconds)
    return seconds
