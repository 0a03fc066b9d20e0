"""Re-ranking: which trials are refitted on other seeds and splits, and which of them wins."""

import math
from collections.abc import Callable

import pytest
from support.manifests import make_manifest, make_space, small_recipe

from study.config.plan import Design, Plan
from study.results.metrics import EpochResult
from study.results.record import Record
from study.verdict.rerank import find_candidates, find_winner, plan_reranks, rank_candidates


@pytest.fixture
def make_search(tmp_path):
    """Return a function that makes a search whose trials classified so many of 100 images correctly."""
    records = []

    def make(*right: int, rerank: int = 3) -> Record:
        space = make_space()
        design = Design("search", (space.base,), space, 1, rerank)
        record = Record.create(tmp_path / f"search{len(records)}", make_manifest(design))
        records.append(record)
        record.add(Plan(None, "search", small_recipe(lr=10.0**-number), 0) for number in range(len(right)))
        run(record, lambda plan: right[plan.number])
        return record

    yield make
    for record in records:
        record.close()


def run(record: Record, right: Callable[[Plan], int | None]) -> None:
    """Run all waiting trials; each ends with so many of 100 images right, or fails if the number is None."""
    for _ in range(sum(trial.state == "waiting" for trial in record.all_trials())):
        plan = record.next_trial()
        count = right(plan)
        if count is None:
            record.fail(plan, "out of memory.")
            continue
        confusion = [[count, 100 - count], [0, 0]]
        for epoch in (1, 2):
            record.epoch(plan, EpochResult(epoch, 1.0, 1.0, 1.0, val_loss=1.0, val_confusion=confusion))
        record.complete(plan)


def rerank(record: Record, right: Callable[[Plan], int | None]) -> list[list[Plan]]:
    """Plan and run the refits as a study does, and return the plans of each round."""
    rounds = []
    while plans := plan_reranks(record, seed=0):
        rounds.append(plans)
        record.add(plans)
        run(record, right)
    return rounds


def by_lr(**right: int | None) -> Callable[[Plan], int | None]:
    """The number of a plan by its recipe's place in the search: a, b, c …"""
    return lambda plan: right["abcdefgh"[round(-math.log10(plan.recipe.lr))]]


def test_candidates_are_the_best_complete_trials_in_order(make_search):
    record = make_search(50, 90, 70, 80)
    assert [trial.number for trial in find_candidates(record.trials(), 3)] == [1, 3, 2]


def test_candidates_have_different_recipes(make_search):
    trials = make_search(50, 90, 70).trials()
    assert [trial.number for trial in find_candidates([*trials, trials[1]], 3)] == [1, 2, 0]


@pytest.mark.parametrize(("right", "number"), [((50,), 3), ((50, 60), 0), ((), 3)])
def test_no_candidates_where_nothing_is_to_be_ranked(make_search, right, number):
    assert find_candidates(make_search(*right).trials(), number) == []


def test_refits_have_two_seeds_that_the_search_lacks(make_search):
    record = make_search(50, 90, 70, 80)
    rounds = rerank(record, lambda plan: 60)
    assert [[plan.recipe.lr for plan in plans] for plans in rounds] == [[0.1, 0.001, 0.01]] * 2
    seeds = [{plan.seed for plan in plans} for plans in rounds]
    assert [len(each) for each in seeds] == [1, 1]
    assert len(set.union({0}, *seeds)) == 3


def test_resumed_reranking_plans_only_what_has_not_ended(make_search):
    record = make_search(50, 90, 70)
    plans = plan_reranks(record, seed=0)
    record.add(plans)
    record.fail(record.next_trial(), "out of memory.")
    assert plan_reranks(record, seed=0) == plans[1:]


def test_best_mean_over_search_and_refits_wins(make_search):
    record = make_search(50, 90, 88, 80)
    rerank(record, by_lr(b=70, c=80, d=60))
    assert [(each.trial, each.mean) for each in rank_candidates(record)] == [
        (2, pytest.approx((0.88 + 0.8 + 0.8) / 3)),
        (1, pytest.approx((0.9 + 0.7 + 0.7) / 3)),
        (3, pytest.approx((0.8 + 0.6 + 0.6) / 3)),
    ]
    assert find_winner(record).number == 2


def test_better_in_the_search_wins_among_equal_means(make_search):
    record = make_search(50, 90, 90)
    rerank(record, lambda plan: 90)
    assert find_winner(record).number == 1


def test_candidate_with_a_failed_refit_is_out(make_search):
    record = make_search(50, 90, 80)
    rerank(record, by_lr(a=10, b=None, c=20))
    assert find_winner(record).number == 2


def test_search_wins_by_itself_while_refits_are_missing(make_search):
    record = make_search(50, 90, 80)
    record.add(plan_reranks(record, seed=0))
    assert find_winner(record).number == 1
    assert record.judging


def test_study_without_reranking_plans_none(make_search):
    record = make_search(50, 90, 80, rerank=0)
    assert (plan_reranks(record, seed=0), record.reranks(), record.judging) == ([], [], False)


def test_reranking_survives_reopening(make_search):
    record = make_search(50, 90, 80)
    rerank(record, by_lr(a=70, b=70, c=80))
    again = Record.read(record.directory)
    assert [trial.plan.key for trial in again.reranks()] == [f"rerank-{number}" for number in range(6)]
    assert rank_candidates(again) == rank_candidates(record)
