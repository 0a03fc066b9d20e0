"""Run one command of `python -m study.run`, print its result and return its exit code; `flags.py` defines the flags.

Exit codes: 0 done, 2 usage or configuration, 1 any other failure, 130 interrupted.
"""

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from study.api.planning import Job, plan_baseline, plan_probe, plan_resumption, plan_searches
from study.api.session import run_job
from study.command_line import overview
from study.config.flags import build_parser, fill_in, moved_places
from study.config.paths import find_study
from study.exit_codes import run_command, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; without arguments, show all commands."""
    if not (sys.argv[1:] if arguments is None else arguments):
        print(overview())
        return 0
    options = build_parser().parse_args(arguments)
    return run_command(lambda: _run_options(options))


def _run_options(options: argparse.Namespace) -> int:
    fill_in(options)
    if options.models is not None:
        return _list_models(options.models)
    if options.reproduce:
        return _reproduce(options.reproduce, moved_places(options))
    if options.resume:
        return _run([plan_resumption(options, _shown)])
    if options.probe is not None:
        return _run([plan_probe(options)])
    return _run(plan_searches(options, _shown) if options.search else [plan_baseline(options)])


def _shown(stage: str) -> AbstractContextManager[None]:
    from study.ticker import shown

    return shown(stage)


def _run(jobs: Sequence[Job]) -> int:
    """Run studies one after the other, and compare several; the exit code is not 0 if one of them failed."""
    results = [run_job(job) for job in jobs]
    if len(jobs) > 1:
        from study.report.render import write_comparison

        page, found = write_comparison([job.directory for job in jobs])
        print(f"\ncompared {found}\n         {page}")
    return 0 if all(result.findings.succeeded for result in results) else 1


def _list_models(pattern: str) -> int:
    from study.models.list_models import EVERYTHING, SHOWN, find_models, format_families, format_models

    limit = None if pattern == EVERYTHING else SHOWN
    print(format_models(find_models(pattern), limit) if pattern else format_families())
    return 0


def _reproduce(name: str, places: Mapping[str, str]) -> int:
    study, _, which = name.partition("/")
    directory = find_study(study, Path("mlruns").absolute(), needs="model*")
    warnings.filterwarnings("ignore")
    from study.tuning.reproduce import describe, reproduce

    reproduction = reproduce(
        directory, lambda epoch: print(f"epoch {epoch.epoch}  loss {epoch.train_loss:.4f}", flush=True), which, places
    )
    print("\n".join(describe(reproduction)))
    return 0 if reproduction.agrees else 1


if __name__ == "__main__":
    run_program(main)
