"""Translate a search space into Optuna's distributions, sampler and pruner.

This module runs no study.
"""

import warnings

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

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


def build_pruner(space: SearchSpace | None) -> optuna.pruners.BasePruner:
    """Build the pruner of a search space; without a space, no trial is pruned."""
    if space is None or space.pruner.name == "none":
        return optuna.pruners.NopPruner()
    # Asynchronous successive halving: Li et al., arXiv:1810.05934
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=space.pruner.min_epochs, reduction_factor=space.pruner.reduction_factor
    )
