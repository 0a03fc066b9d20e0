"""Build command lines for tests."""

import sys


def study_command(*arguments: object) -> list[str]:
    """Return the command line that runs `study.run` in a process of its own."""
    return [sys.executable, "-m", "study.run", *map(str, arguments)]
