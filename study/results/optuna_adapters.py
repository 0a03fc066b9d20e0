"""What Optuna makes of a search space: the domains that its sampler proposes from, and the pruner that stops trials.

Runs no study.
"""

import warnings

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from study.config.search_space import Categorical, Domain, Float, Int, SearchSpace


def build_distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return Optuna's domain of each searched field."""
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

    Each proposal has its own, so that it depends on the journal and its number alone, and a search that was resumed
    goes on as one that was never stopped. Groups keep a fixed trial outside the space from hiding the others.
    """
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=True, group=True, constant_liar=True)


def build_pruner(space: SearchSpace | None) -> optuna.pruners.BasePruner:
    """Build what stops trials early; where there is no space, nothing does."""
    if space is None or space.pruner.name == "none":
        return optuna.pruners.NopPruner()
    # Asynchronous successive halving: Li et al., arXiv:1810.05934
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=space.pruner.min_epochs, reduction_factor=space.pruner.reduction_factor
    )
