"""Proposals are the sampler's own, and repeat no earlier one."""

import optuna
import pytest
from support.manifests import make_space

from study.config.search_space import Categorical, Float, Int
from study.results.optuna_adapters import build_distributions, build_sampler, propose

optuna.logging.set_verbosity(optuna.logging.WARNING)

MIXED = make_space(domains={"lr": Float(1e-5, 1.0, log=True), "unfreeze_depth": Int(0, 3)})
SMALL = make_space(domains={"optimizer": Categorical(("adam", "sgd")), "unfreeze_depth": Int(0, 1)})


def score(trial):
    """Return a number that depends on the proposal, and is the same in every run."""
    return sum(len(str(value)) for value in trial.params.values()) % 7


def run_search(space, count, *, fail=()):
    """Propose and end trials, and return the proposals."""
    study = optuna.create_study(direction="maximize")
    for number in range(count):
        trial = propose(study, space, seed=number)
        if number in fail:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, score(trial))
    return [trial.params for trial in study.trials]


def test_proposals_that_repeat_nothing_are_the_samplers_own():
    study = optuna.create_study(direction="maximize")
    for number in range(15):
        study.sampler = build_sampler(number)
        trial = study.ask(build_distributions(MIXED))
        study.tell(trial, score(trial))
    assert run_search(MIXED, 15) == [trial.params for trial in study.trials]


def test_recipes_that_differ_in_unused_momentum_alone_are_one():
    domains = {"optimizer": Categorical(("adam", "sgd")), "momentum": Categorical((0.0, 0.5, 0.9))}
    space = make_space(domains=domains)
    proposals = run_search(space, 4)
    assert len({space.recipe(proposal) for proposal in proposals}) == 4  # adam, and sgd with three momenta


@pytest.mark.parametrize("fail", [(), (0,), (1, 2)])
def test_small_space_is_tried_as_a_whole_before_anything_repeats(fail):
    proposals = run_search(SMALL, 6, fail=fail)
    assert len({tuple(sorted(proposal.items())) for proposal in proposals[:4]}) == 4
    assert len(proposals) == 6


def test_recipe_that_was_queued_is_not_proposed_again():
    study = optuna.create_study(direction="maximize")
    expected = propose(study, MIXED, seed=3).params
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(expected)
    study.tell(study.ask(build_distributions(MIXED)), 1.0)
    assert propose(study, MIXED, seed=3).params != expected
