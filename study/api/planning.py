"""Turn parsed flags, or keyword arguments of the same names, into studies that are ready to run.

All mistakes are reported here, before anything slow starts. Imports no torch, Ray, Optuna or MLflow until a study is
resumed.
"""

import argparse
import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from study.config.flags import (
    change_budget,
    change_recipe,
    configure,
    count_candidates,
    read_prior,
    read_space,
    recipe_changes,
)
from study.config.load_toml import BACKBONES, baseline_recipe, load_baseline, load_portfolio, load_space, set_by_user
from study.config.paths import check_new, find_study, list_journals
from study.config.plan import NO_PRIOR, Design, Repeats, StudyConfig, probe_recipe
from study.config.resume_flags import check_flags, check_space, recorded_config
from study.errors import ConfigError

if TYPE_CHECKING:
    from study.results.record import Record


Shown = Callable[[str], contextlib.AbstractContextManager[object]]
"""Function that shows what a block does while it runs, from its name."""


@dataclass(frozen=True)
class Job:
    """A checked study that is ready to run."""

    config: StudyConfig
    design: Design
    record: "Record | None" = None
    """Record of a study that is resumed; None for a new study."""
    remarks: tuple[str, ...] = ()
    """What a person should know about the plan, one line each."""

    @property
    def directory(self) -> Path:
        """Directory of the study, which need not exist yet."""
        return self.config.mlruns / "studies" / self.config.name


def plan_baseline(options: argparse.Namespace) -> Job:
    """Plan a study of the baseline's recipe.

    Raises:
        ConfigError: options break their rules.
        RecordError: a study of that name exists.
    """
    baseline = load_baseline()
    models = list(dict.fromkeys(options.baseline or baseline.models))
    if options.as_written and (other := [model for model in models if model not in baseline.models]):
        known = " and ".join(baseline.models)
        raise ConfigError(f"--as-written: models must be among {known}, as in the assignment, but got {other[0]!r}.")
    recipes = [change_recipe(options, baseline_recipe(model)) for model in models]
    config = configure(options, options.name or default_name("baseline"))
    job = Job(config, Design("as-written" if options.as_written else "baseline", tuple(recipes)))
    check_new(job.directory)
    return job


def plan_probe(options: argparse.Namespace) -> Job:
    """Plan a study of linear probes, one for each model; the shipped portfolio of models if none is named.

    Raises:
        ConfigError: options break their rules.
        RecordError: a study of that name exists.
    """
    models = dict.fromkeys(options.probe or load_space(BACKBONES).models)
    recipes = [probe_recipe(change_recipe(options, baseline_recipe(model))) for model in models]
    config = configure(options, options.name or default_name("probe"))
    job = Job(config, Design("probe", tuple(recipes), metric=options.metric or "accuracy"))
    check_new(job.directory)
    return job


def plan_searches(options: argparse.Namespace, shown: Shown = contextlib.nullcontext) -> list[Job]:
    """Plan one study for each search space; `shown` shows what takes longer.

    Raises:
        ConfigError: options or spaces break their rules.
        RecordError: a study of one of the names exists.
    """
    repeats: Repeats = "auto" if options.repeats is None else options.repeats
    if repeats != "auto" and repeats < 1:
        raise ConfigError(f"--repeats: must be at least 1, but got {repeats}.")
    spaces = [read_space(name, options) for name in dict.fromkeys(options.search)]
    prior = read_prior(options, Path("mlruns").absolute())
    if options.name and len(spaces) > 1:
        raise ConfigError(f"--name: must be left out when --search has several spaces, but got {len(spaces)} spaces.")
    names = [space.name for space in spaces]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"--search: spaces must have different names, but got {twice!r} twice. Rename a file, or leave one out."
        )
    designs = [
        Design(
            "search",
            (change_recipe(options, baseline_recipe(space.base.model)),),
            space,
            repeats,
            count_candidates(options, space),
            options.metric or "accuracy",
            load_portfolio(),
            prior,
        )
        for space in spaces
    ]
    configs = [configure(options, options.name or default_name(space.name)) for space in spaces]
    jobs = [
        Job(config.with_resources(space.resources), design)
        for space, design, config in zip(spaces, designs, configs, strict=True)
    ]
    for job in jobs:
        check_new(job.directory)
    return [_with_proposals(job, shown) for job in jobs]


def _with_proposals(job: Job, shown: Shown) -> Job:
    """Return a search with the recipes of earlier studies that it tries first.

    Raises:
        ConfigError: a study that --prior names has no recipes for it.
    """
    if job.design.prior == (NO_PRIOR,) or not list_journals(job.config.mlruns):
        return job
    with shown("reading the records of earlier studies"):
        from study.verdict.prior import find_proposals

        proposals, remarks = find_proposals(job.design, job.config.mlruns)
    return replace(job, design=replace(job.design, proposals=proposals), remarks=tuple(remarks))


def plan_resumption(options: argparse.Namespace, shown: Shown = contextlib.nullcontext) -> Job:
    """Open a study to continue it with its recorded settings; `shown` shows what takes longer.

    Raises:
        ConfigError: no such study exists, or options would make another study of it.
        RecordError: the record is damaged, or another process runs the study.
    """
    directory = find_study(options.resume, Path("mlruns").absolute())
    config = configure(options, directory.name)
    spaces = [read_space(name, options) for name in options.search or []]
    with naming(directory), shown("reading the study's record"):
        from study.results.record import Record

        record = Record.open(directory)
    try:
        manifest = record.manifest
        given = {"data": options.data and config.data, "weights": options.weights and config.weights}
        check_flags(options, manifest, given)
        config = recorded_config(options, manifest, config)
        for space in spaces:
            check_space(space, manifest, {"model", *set_by_user(str(space.file)), *recipe_changes(options)})
        design = manifest.design
        _check_budget(options, record)
        if record.space and design.space:
            record.set_budget(change_budget(options, record.space.budget))
            design = replace(design, space=replace(design.space, budget=record.space.budget))
            config = config.with_resources(record.space.resources)  # an old manifest has none
    except BaseException:
        record.close()
        raise
    return Job(config, design, record)


def _check_budget(options: argparse.Namespace, record: "Record") -> None:
    """Check that the study allows the budget that the options ask for.

    Raises:
        ConfigError: the study has fixed trials, or more trials are asked for after the verdict has begun.
    """
    trials = len(record.trials())
    if record.space is None and (options.trials is not None or options.time_budget is not None):
        raise ConfigError("--trials, --time-budget: need a search, but the study has fixed trials.")
    if record.judging and options.trials is not None and options.trials > trials:
        raise ConfigError(
            f"--trials: must be at most {trials}, since the search has ended, but got {options.trials}. Begin a new"
            " study: it tries the best recipes of this one first."
        )


@contextlib.contextmanager
def naming(directory: Path) -> Iterator[None]:
    """Add to an interruption's message how to continue the study in `directory`, if the study has begun."""
    try:
        yield
    except KeyboardInterrupt:
        hint = f"interrupted; the record is kept. To continue: python -m study.run --resume {directory.name}"
        raise KeyboardInterrupt(hint if directory.is_dir() else "") from None


def default_name(prefix: str) -> str:
    """Return a name that no other study gets, not even one that another process begins in the same second."""
    prefix = re.sub(r"[^A-Za-z0-9._-]+", "-", prefix).strip("-._")[:37] or "search"
    return f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(5)}"
