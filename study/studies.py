"""List, show and remove studies, and show and clear caches: `python -m study.studies [NAME …] [--remove]`.

Exit codes: 0 done, 1 any other failure, or a removal that was not confirmed, 2 usage, 130 interrupted.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from study.command_line import Parser
from study.config.paths import find_study, list_journals
from study.errors import ConfigError
from study.exit_codes import run_command, run_program
from study.formatting import format_bytes

CLEARABLE = ("features", "images")
"""Caches that --clear takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = build_parser().parse_args(arguments)
    warnings.filterwarnings("ignore")
    return run_command(lambda: _run(options), interrupted="interrupted; what had been removed is gone.")


def build_parser() -> Parser:
    """Build the parser of `python -m study.studies`."""
    parser = Parser(
        prog="python -m study.studies",
        description="List the studies of this directory, show or remove some, or show and clear the caches.",
    )
    parser.add_argument("studies", nargs="*", metavar="NAME", help="name of a study, or 'latest'; default: list all")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--remove", action="store_true", help="remove the studies NAME and their MLflow runs")
    what.add_argument("--caches", action="store_true", help="show the caches, their places and their sizes")
    what.add_argument("--clear", nargs="+", choices=CLEARABLE, metavar="CACHE", help="clear caches: features, images")
    parser.add_argument("--yes", action="store_true", help="with --remove: do not ask")
    parser.add_argument("--tracking-uri", metavar="URI", help="with --remove: MLflow's store (default: the study's)")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.remove:
        return _remove(options)
    for flag, given in (("--yes", options.yes), ("--tracking-uri", options.tracking_uri)):
        if given:
            raise ConfigError(f"{flag}: needs --remove.")
    if options.caches or options.clear:
        if options.studies:
            raise ConfigError(f"NAME: must be left out with caches, but got {options.studies[0]!r}.")
        return _show_caches(options.clear or [])
    mlruns = Path("mlruns").absolute()
    names = dict.fromkeys(options.studies)
    directories = [find_study(name, mlruns) for name in names]
    if not directories and not list_journals(mlruns):
        print(f"{mlruns} holds no study.")
        return 0
    from study.api.handle import Study
    from study.upkeep.inventory import format_entries, list_entries

    if directories:
        print("\n\n".join(repr(Study(directory)) for directory in directories))
    else:
        print(format_entries(list_entries(mlruns)))
    return 0


def _remove(options: argparse.Namespace) -> int:
    """Remove studies, each after a question unless --yes is given."""
    if not options.studies:
        raise ConfigError("--remove: needs the NAME of a study.")
    directories = [find_study(name, Path("mlruns").absolute()) for name in dict.fromkeys(options.studies)]
    if not options.yes and not sys.stdin.isatty():
        raise ConfigError("--remove: asks before it removes, but there is no terminal. Add --yes.")
    from study.upkeep.removal import plan_removal, remove

    exit_code = 0
    for directory in directories:
        removal = plan_removal(directory, options.tracking_uri)
        print(f"remove   {directory}, {format_bytes(removal.size_bytes)}")
        for sentence in removal.describe():
            print(f"         {sentence}")
        if not options.yes and input("Remove it? [y/N] ").strip().lower() not in {"y", "yes"}:
            print("kept")
            exit_code = 1
            continue
        print(f"removed  {directory.name}, and {remove(removal)} runs in MLflow")
    return exit_code


def _show_caches(cleared: Sequence[str]) -> int:
    from study.upkeep.caches import clear, format_caches, list_caches

    caches = list_caches()
    for cache in caches:
        if cache.name in cleared:
            print(f"cleared  {cache.name}: {format_bytes(clear(cache))}")
    print(format_caches(caches))
    return 0


if __name__ == "__main__":
    run_program(main)
