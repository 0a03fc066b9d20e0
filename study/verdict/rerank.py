"""Choose the winner of a search: refit its best candidates on more seeds and splits, and take the best mean.

The best of many trials is partly the luckiest: it had the seed and the validation images that suited it. Reads records
and plans trials. Sees validation results only.
"""

from collections.abc import Iterable, Sequence

from study.config.plan import Plan
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.seeding import derive_seed
from study.verdict.judge import choose
from study.verdict.verdict import Candidate

REFITS = 2
"""Refits of each candidate. Each has a seed of its own, from which its split of the training images is drawn too."""


def find_candidates(trials: Iterable[TrialRecord], number: int) -> list[TrialRecord]:
    """Return the best complete trials of a search with different recipes, the best first; none if there is only one."""
    left = [trial for trial in trials if trial.state == "complete"]
    found: list[TrialRecord] = []
    while len(found) < number and (best := choose(left)):
        found.append(best)
        left = [trial for trial in left if trial.plan.recipe != best.plan.recipe]
    return found if len(found) > 1 else []


def rerank_seeds(seed: int) -> Sequence[int]:
    """Return the seeds of the refits of each candidate."""
    first = derive_seed(seed, "rerank") % 2**31
    return range(first, first + REFITS)


def plan_reranks(record: Record, seed: int) -> list[Plan]:
    """Plan the refits that are to be run next: those of one seed, which share a split; none if all have ended.

    Args:
        record: record of a search that has run all its trials.
        seed: seed of the study.

    Returns:
        Plans without numbers.
    """
    candidates = find_candidates(record.trials(), record.manifest.design.rerank)
    ended = {(trial.plan.recipe, trial.plan.seed) for trial in record.reranks() if trial.finished}
    for refit in rerank_seeds(seed):
        recipes = [trial.plan.recipe for trial in candidates if (trial.plan.recipe, refit) not in ended]
        if recipes:
            return [Plan(None, "rerank", recipe, refit) for recipe in recipes]
    return []


def rank_candidates(record: Record) -> list[Candidate]:
    """Return the candidates whose refits are all complete, the best mean first, equal ones as in the search.

    The mean is over the search's own result and the refits: each is one seed and one split. The search's result counts
    although it was chosen from, because without it the mean of two would vary more.
    """
    ranked = []
    for trial in find_candidates(record.trials(), record.manifest.design.rerank):
        refits = [refit.value for refit in record.reranks() if refit.plan.recipe == trial.plan.recipe]
        values = [value for value in (trial.value, *refits) if value is not None]
        if len(values) == 1 + REFITS:
            ranked.append(Candidate(trial.number, values, sum(values) / len(values)))
    return sorted(ranked, key=lambda candidate: -candidate.mean)


def find_winner(record: Record) -> TrialRecord | None:
    """Return the trial that wins a search: the best re-ranked candidate, or without re-ranking the best trial.

    Once refits for the verdict are planned, it is the trial that they belong to: version 0.1.0 did not break ties by
    loss, and may have planned another trial's.
    """
    trials = record.trials()
    if ranked := rank_candidates(record):
        return trials[ranked[0].trial]
    recipes = {trial.plan.recipe for trial in record.finals()}
    planned = [trial for trial in trials if trial.plan.recipe in recipes - {trials[0].plan.recipe}]
    return choose(planned or (trials[:1] if recipes else trials))
