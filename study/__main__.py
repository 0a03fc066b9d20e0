"""Show all commands, or run one of them: `python -m study`, `python -m study run --baseline`.

Exit codes: those of the command, 0 for the overview, 2 for a command that does not exist.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from study import __version__
from study.command_line import COMMANDS, overview
from study.errors import unknown_name
from study.exit_codes import run_program

IN_PACKAGES = ("export", "report", "bench")
"""Commands that are packages."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code; without arguments, show all."""
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    if name in ("--help", "-h"):
        print(overview())
        return 0
    if name == "--version":
        print(f"study {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"study: {unknown_name('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    module = import_module(f"study.{name}.__main__" if name in IN_PACKAGES else f"study.{name}")
    code: int = module.main(rest)
    return code


def program() -> NoReturn:
    """Run the installed program `study-classifiers`."""
    run_program(main)


if __name__ == "__main__":
    program()
