"""Find recipes that were good in earlier studies, to be tried first in a new search.

Only recipes are taken, never results: each is trained and validated anew. Reads validation results only.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from study.config.manifest import Manifest
from study.config.paths import list_journals
from study.config.plan import AUTO_PRIOR, NO_PRIOR, Design, Proposal
from study.config.search_space import Categorical, Domain, SearchSpace
from study.errors import ConfigError, StudyError
from study.results.ledger import glance
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.judge import rank

MOST = 10
"""Largest number of recipes that are taken; `screen.py` gives them a part of the budget."""
NEAR = 0.1
"""Two recipes count as one if no number differs by more than this part of its domain, and no choice differs."""
FREE = {"epochs", "image_size", "fit", "augmentation", "class_weights", "views"}
"""Fixed fields that may differ between a study and an earlier one that --prior auto takes recipes from."""
UNREADABLE = "its record cannot be read"

Values = Mapping[str, Any]


def find_proposals(design: Design, mlruns: Path) -> tuple[tuple[Proposal, ...], list[str]]:
    """Return recipes of earlier studies for a search, and remarks on studies that were left out.

    Args:
        design: design of the search; its `prior` says which studies are asked for.
        mlruns: directory of all studies.

    Raises:
        ConfigError: a study that is named is no search of the same fields, or cannot be used.
    """
    space, remarks = design.space, list[str]()
    if space is None or design.prior == (NO_PRIOR,):
        return (), remarks
    named = design.prior != (AUTO_PRIOR,)
    left_out = "study {} is left out of the first proposals, since {}".format
    histories: dict[str, list[TrialRecord]] = {}
    for journal in list_journals(mlruns):
        name = journal.parent.name
        if named and name not in design.prior:
            continue
        other = glance(journal)
        if other is None:
            remarks.append(left_out(name, UNREADABLE))
        elif named and (lack := _lack(space, other.manifest)):
            raise ConfigError(f"--prior: {name} {lack}. Leave it out.")
        elif not named and not _fits(design, other.manifest):
            continue
        elif other.verdict is None:
            remarks.append(left_out(name, "it has not ended"))
        else:
            try:
                histories[name] = best_trials(Record.read(journal.parent).trials())
            except StudyError:
                remarks.append(left_out(name, UNREADABLE))
    given = {
        name: [(trial.number, {field: getattr(trial.plan.recipe, field) for field in space.domains}) for trial in found]
        for name, found in histories.items()
    }
    tried = {field: getattr(design.recipes[0], field) for field in space.domains}
    return tuple(take_turns(space, given, tried=tried)), remarks


def describe_proposals(record: Record) -> str:
    """Return how many trials of a search are recipes of which studies: `2 from study pets-1 (trials 4, 9)`."""
    space, tried = record.manifest.design.space, [trial.plan.recipe for trial in record.trials()]
    taken: dict[str, list[str]] = {}
    for proposal in record.manifest.design.proposals if space else ():
        if space and space.recipe(proposal.values) in tried:
            taken.setdefault(proposal.study, []).append(str(proposal.trial))
    return ", ".join(
        f"{len(trials)} from study {study} (trial{'s' if len(trials) > 1 else ''} {', '.join(trials)})"
        for study, trials in taken.items()
    )


def _lack(space: SearchSpace, other: Manifest) -> str | None:
    """Return why a study that is named has no recipes for a space; None if it has."""
    theirs = other.design.space
    if theirs is None:
        return "must be a search, but has fixed trials"
    ours, fields = ", ".join(sorted(space.domains)), ", ".join(sorted(theirs.domains))
    return None if ours == fields else f"must search the fields {ours}, but searches {fields}"


def _fits(design: Design, other: Manifest) -> bool:
    """Return whether a study has the same fields, metric, models and fixed fields, except for those in FREE."""
    space, theirs = design.space, other.design.space
    if space is None or theirs is None or {*space.domains} != {*theirs.domains}:
        return False
    varied = FREE | {*space.domains}
    differing = {*space.base.changes_from(theirs.base)} - varied
    return design.metric == other.design.metric and not differing


def best_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the complete trials of a search that are at least as good as its baseline, the best first."""
    complete = sorted((trial for trial in trials if trial.state == "complete"), key=rank, reverse=True)
    baseline = next((trial for trial in trials if trial.number == 0), None)
    if baseline is None or baseline.state != "complete":
        return complete
    return [trial for trial in complete if rank(trial) >= rank(baseline)]


def take_turns(
    space: SearchSpace, histories: Mapping[str, Sequence[tuple[int, Values]]], *, tried: Values
) -> Iterator[Proposal]:
    """Yield at most MOST distinct recipes: the best of each study, then the second best of each, and so on.

    Numbers beyond a bound of the space are moved to the bound; recipes with a choice that it lacks are passed over.

    Args:
        space: space of the new search.
        histories: by the name of each study, numbers of trials and values of the searched fields, the best first.
        tried: values of a recipe that is a trial anyway, the baseline's.
    """
    taken: list[Values] = [tried]
    for place in range(max(map(len, histories.values()), default=0)):
        for study, found in histories.items():
            if place >= len(found) or len(taken) > MOST:
                continue
            trial, values = found[place]
            clipped = {field: _clip(domain, values[field]) for field, domain in space.domains.items()}
            outside = any(value not in space.domains[field] for field, value in clipped.items())
            if outside or any(_alike(space, clipped, other) for other in taken):
                continue
            taken.append(clipped)
            yield Proposal(study, trial, clipped)


def _clip(domain: Domain, value: Any) -> Any:
    """Return the value of the domain that is nearest to a number; a choice as it is."""
    return value if isinstance(domain, Categorical) else min(max(value, domain.low), domain.high)


def _alike(space: SearchSpace, one: Values, other: Values) -> bool:
    """Return whether two recipes differ in no choice, and in each number by at most NEAR of its domain."""
    for field, domain in space.domains.items():
        if isinstance(domain, Categorical):
            if one[field] != other[field]:
                return False
        elif abs(_position(domain, one[field]) - _position(domain, other[field])) > NEAR:
            return False
    return True


def _position(domain: Domain, value: float) -> float:
    """Return where a number lies in its domain, from 0 to 1, on the domain's scale."""
    assert not isinstance(domain, Categorical)
    low, high = float(domain.low), float(domain.high)
    if low == high:
        return 0.0
    if domain.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
