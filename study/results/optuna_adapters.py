"""Translate a search space into Optuna's distributions, sampler and pruner, and rank its fields.

This module runs no study.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from study.config.search_space import Categorical, Domain, Float, Int, SearchSpace


def build_distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the Optuna distribution of each searched field."""
    return {field: _distribution(domain) for field, domain in space.domains.items()}


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Int(low, high, log):
            return IntDistribution(low, high, log=log)
        case Float(low, high, log):
            return FloatDistribution(low, high, log=log)
        case Categorical(choices):
            return CategoricalDistribution(choices)


def build_sampler(seed: int) -> optuna.samplers.TPESampler:
    """Build the sampler of one proposal (TPE: Bergstra et al., NeurIPS 2011).

    Each proposal gets a new sampler. So a proposal depends only on the journal and on its number, and a resumed search
    proposes the same recipes as an uninterrupted one. `group` is set because otherwise one fixed trial outside the
    space would hide the other trials from the sampler.

    Args:
        seed: seed of the sampler, any integer; its lower 32 bits are used.
    """
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=True, group=True, constant_liar=True)


TRIES = 20
"""How often a proposal is drawn until it repeats no earlier one; in a small space all recipes may have been tried."""


class DistinctSampler(optuna.samplers.BaseSampler):
    """Draw proposals with samplers of further seeds until one repeats no earlier trial, nor thus its result."""

    def __init__(
        self,
        build: Callable[[int], optuna.samplers.BaseSampler],
        seed: int,
        distributions: Mapping[str, BaseDistribution],
        used: Callable[[Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        """Draw values of `distributions` with samplers that `build` makes from `seed` and the numbers after it.

        `used` returns those of a recipe's values that do something in it.
        """
        self._build, self._seed, self._used = build, seed, used
        self._distributions = {name: drawn for name, drawn in distributions.items() if not drawn.single()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return all fields: they are drawn together, so that they can be compared with those of other trials."""
        return self._distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw a value for each field, as `study.ask` would with the sampler that is built."""
        earlier = [
            self._used({name: other.params.get(name) for name in search_space})
            for other in study.get_trials(deepcopy=False)
        ]
        for attempt in range(TRIES):
            sampler = self._build(self._seed + attempt)
            known = sampler.infer_relative_search_space(study, trial)
            drawn = sampler.sample_relative(study, trial, known)
            for name, distribution in search_space.items():
                if name not in drawn:
                    drawn[name] = sampler.sample_independent(study, trial, name, distribution)
            proposal = {name: drawn[name] for name in search_space}
            if self._used(proposal) not in earlier:
                break
        return proposal

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one value, of a field that is fixed or was not asked for."""
        return self._build(self._seed).sample_independent(study, trial, param_name, param_distribution)


def propose(
    study: optuna.Study,
    space: SearchSpace,
    seed: int,
    build: Callable[[int], optuna.samplers.BaseSampler] = build_sampler,
) -> optuna.Trial:
    """Ask for the next trial of a search, which repeats no earlier one unless the space is as good as exhausted.

    Failed trials count as worse than every trial that has a score, or the sampler, which ignores them, would go on
    proposing recipes that diverge. It therefore sees a copy of the study in which they are pruned without a score: TPE
    ranks these last. Where no trial has failed, the sampler sees the study itself.

    Args:
        study: the search's trials; the proposal is added to it.
        space: what to propose from.
        seed: seed of the proposal's sampler.
        build: function that makes the sampler from its seed.
    """
    distributions = build_distributions(space)
    study.sampler = DistinctSampler(build, seed, distributions, space.used)
    trials = study.get_trials(deepcopy=False)
    if any(trial.state is TrialState.FAIL for trial in trials):
        seen = optuna.create_study(direction=study.direction, sampler=study.sampler)
        seen.add_trials([_as_worst(trial) if trial.state is TrialState.FAIL else trial for trial in trials])
        proposal = seen.ask(distributions).params
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study.sampler = optuna.samplers.PartialFixedSampler(proposal, study.sampler)
    return study.ask(distributions)


def _as_worst(trial: FrozenTrial) -> FrozenTrial:
    return optuna.trial.create_trial(
        state=TrialState.PRUNED, params=trial.params, distributions=trial.distributions, user_attrs=trial.user_attrs
    )


MIN_REPORTED = 4
"""Trials that must have reported an epoch before one of them is pruned after it, unless it is hopeless.

Replayed on simulated learning curves (30 searches each of 3 to 20 trials of 5 epochs): without this minimum, halving
ended every trial but the baseline's in 30 of 30 searches of up to 10 trials whose baseline was good; with it in none.
The chosen recipe was as accurate as without any pruning, to 0.8 points, for 61 to 89 % of the epochs.
"""


HOPELESS = 0.25
"""A trial is hopeless if it has learnt less than this share of what the best one had learnt after the same epoch.

docs/sampler-and-pruner.md compares shares, on recorded curves.
"""


class GuardedPruner(optuna.pruners.BasePruner):
    """Another pruner that may only end hopeless trials until more than MIN_REPORTED have reported the same epoch."""

    def __init__(self, pruner: optuna.pruners.BasePruner, guess: float, hopeless: float = HOPELESS) -> None:
        """Wrap `pruner`; what is above `guess`, the score of a guess, was learnt."""
        self._pruner = pruner
        self._guess = guess
        self._hopeless = hopeless

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is to end now; the wrapped pruner is always asked, since it keeps the ranking."""
        behind = self._pruner.prune(study, trial)
        step, others = trial.last_step, study.get_trials(deepcopy=False)
        if not behind or step is None:
            return False
        reported = [other.intermediate_values[step] for other in others if step in other.intermediate_values]
        learnt, most = trial.intermediate_values[step] - self._guess, max(reported) - self._guess
        return len(reported) > MIN_REPORTED or (most > 0 and learnt < self._hopeless * most)


def build_pruner(space: SearchSpace, guess: float) -> optuna.pruners.BasePruner:
    """Build the pruner of a search space; `guess` is the score of a classifier that looks at no image."""
    if space.pruner.name == "none":
        return optuna.pruners.NopPruner()
    # Asynchronous successive halving: Li et al., arXiv:1810.05934
    halving = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=space.pruner.min_epochs, reduction_factor=space.pruner.reduction_factor
    )
    return GuardedPruner(halving, guess)


MIN_COMPLETE, MIN_SCORES = 10, 5
"""Complete trials, and different values of the metric among them, that the importance of fields is computed from.

Simulated with three fields, of which one decides: that one came out first in 18 of 40 searches of 3 complete trials (a
guess gets 13), in 26 of 40 of 10 and in 35 of 40 of 14.
"""


def rank_fields(study: optuna.Study, space: SearchSpace) -> dict[str, float]:
    """Return the importance of each searched field for the metric (fANOVA), in [0, 1], with sum 1.

    Only fields that differ between complete trials, and do something in all of them, are ranked, and only if there are
    MIN_COMPLETE of these with MIN_SCORES different values of the metric: fewer show nothing about a field. Empty if no
    field can be ranked.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    inside = [trial for trial in complete if set(space.domains) <= set(trial.params)]
    used = [space.used(trial.params) for trial in inside]
    fields = [name for name in space.domains if len({trial.params[name] for trial in inside}) > 1]
    fields = [name for name in fields if all(name in values for values in used)]
    if len(inside) < MIN_COMPLETE or len({trial.value for trial in inside}) < MIN_SCORES or not fields:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, params=fields))
