"""Parse the flags of all commands in one way: a mistake is one line, with the nearest flag that exists."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from study import __version__
from study.errors import nearest_name

COMMANDS = {
    "run": (
        "train a baseline, or search for a better recipe",
        "python -m study.run --search resnet18 --data pets",
    ),
    "audit": (
        "count images, and find copies and wrong labels",
        "python -m study.audit pets",
    ),
    "predict": (
        "classify images with a study's model",
        "python -m study.predict photo.jpg --model latest",
    ),
    "export": (
        "write a model as ONNX, pt2 or safetensors",
        "python -m study.export latest --to onnx exported",
    ),
    "report": (
        "write a study's report, or compare studies",
        "python -m study.report latest",
    ),
    "studies": (
        "list studies, remove some, show and clear caches",
        "python -m study.studies",
    ),
    "ui": (
        "open MLflow on the studies of this directory",
        "python -m study.ui",
    ),
    "bench": (
        "measure this computer",
        "python -m study.bench --quick",
    ),
}
"""Each command with what it does and an example."""


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        """Set up the parser of a command; `--version` prints the version of `study`."""
        super().__init__(allow_abbrev=False, **options)
        self.add_argument("--version", action="version", version=f"study {__version__}")

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse arguments, none of which may be empty: that is mostly a shell variable that is not set.

        Taken for a value that is not given, it would run something else: `--resume ""` a new study.
        """
        given = sys.argv[1:] if args is None else args
        for position, argument in enumerate(given):
            before = given[position - 1] if position else ""
            if not argument or (argument.startswith("--") and argument.endswith("=")):
                place = argument.rstrip("=") or (before if before.startswith("--") else f"argument {position + 1}")
                self.error(f"{place}: must not be empty. Perhaps a variable of the shell is not set")
        return super().parse_args(given)

    def error(self, message: str) -> NoReturn:
        """Print a mistake, with the nearest flag for an unknown one, and exit with 2."""
        hints = []
        if message.startswith("unrecognized arguments"):
            for flag in re.findall(r"(?<!\S)--[^\s=]+", message):
                if near := nearest_name(flag, self._option_string_actions):
                    hints.append(f"Did you mean {near}? ")
        self.exit(2, f"study: {message}. {''.join(hints)}All flags: {self.prog} --help\n")


def overview() -> str:
    """Return all commands with an example each, on one screen of 80 columns."""
    lines = ["study finds good settings for fine-tuning an image classifier.", ""]
    for what, example in COMMANDS.values():
        lines += [f"  {what}", f"      {example}"]
    return "\n".join([*lines, "", "A small try that needs no network, in one to three minutes:",
                      "      python -m study.run --baseline --demo", "",
                      "Each command explains its flags with --help."])  # fmt: skip
