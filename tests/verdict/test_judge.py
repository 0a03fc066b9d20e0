"""The verdict on synthetic predictions, whose answer is known by hand or by symmetry."""

import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from study.config.load_toml import baseline_recipe
from study.config.plan import Plan
from study.results.metrics import EpochResult, Evaluation
from study.results.record import Record
from study.results.trial_record import TrialRecord
from study.verdict.judge import choose, final_seeds, judge, plan_finals
from study.verdict.statistics import Difference
from study.verdict.verdict import stored_verdict
from study.verdict.wording import details, sentence

RECORDS = Path(__file__).parents[1] / "records"
BASELINE = baseline_recipe("resnet18")
WINNER = replace(BASELINE, unfreeze_depth=2, lr=3.1e-4)
CLASSES = ("cat", "dog", "ship")
LABELS = [index % 3 for index in range(300)]
SEEDS = (11, 12, 13)


def trial(number, recipe, *, stage="search", seed=0, state="complete", value=None, test=None, reason=None):
    return TrialRecord(
        plan=Plan(number, stage, recipe, seed),
        state=state,
        value=test.accuracy if test else value,
        epochs=(),
        epoch_ends_ms=(),
        test=test,
        tests_opened=1 if test else 0,
        reason=reason,
        facts={},
        started_ms=None,
        ended_ms=None,
    )


def errs_on(wrong: Collection[int]) -> Evaluation:
    """A test in which these images, by index, are taken for the next class."""
    predictions = [(label + (index in wrong)) % 3 for index, label in enumerate(LABELS)]
    confusion = np.zeros((3, 3), dtype=int)
    np.add.at(confusion, (LABELS, predictions), 1)
    return Evaluation(loss=1.0, confusion=confusion.tolist(), predictions=predictions)


def finals(baseline: list[Evaluation | str], winner: list[Evaluation | str]) -> list[TrialRecord]:
    """The refits in the order of the plan, from number 20 on; a text is the reason of one that failed."""
    outcomes = [outcome for pair in zip(baseline, winner, strict=True) for outcome in pair]
    trials = []
    for index, outcome in enumerate(outcomes):
        values = {"state": "failed", "reason": outcome} if isinstance(outcome, str) else {"test": outcome}
        recipe, seed = (BASELINE, WINNER)[index % 2], SEEDS[index // 2]
        trials.append(trial(20 + index, recipe, stage="final", seed=seed, **values))
    return trials


def verdict_on(trials, winner=None, **told):
    winner = winner or trial(7, WINNER, value=0.95)
    return judge(trials, labels=LABELS, baseline=BASELINE, winner=winner, classes=CLASSES, **told)


def plan(trials, winner=None, *, seed=0, repeats="auto", earlier=()):
    """The refits that are still to be run."""
    winner = winner or trial(7, WINNER, value=0.95)
    told = {"baseline": BASELINE, "labels": LABELS, "seed": seed, "repeats": repeats, "earlier": earlier}
    return plan_finals(trials, winner=winner, **told)


def refits(plans: list[Plan], gained: list[int] | None = None) -> list[TrialRecord]:
    """Complete refits of these plans; of each seed, the winner is right on so many images more than the baseline."""
    order = {seed: index for index, seed in enumerate(dict.fromkeys(plan.seed for plan in plans))}
    trials = []
    for number, each in enumerate(plans):
        wrong = np.random.default_rng(order[each.seed]).permutation(300)[:90].tolist()
        if gained and each.recipe == WINNER:
            kept, more = wrong[max(gained[order[each.seed]], 0) :], gained[order[each.seed]]
            wrong = [*kept, *sorted({*range(300)} - {*wrong})[: max(-more, 0)]]
        trials.append(trial(number, each.recipe, stage="final", seed=each.seed, test=errs_on(wrong)))
    return trials


def better():
    """The winner is right where the baseline is, and on 60 of 300 images besides."""
    return verdict_on(finals([errs_on(range(90))] * 3, [errs_on(range(30))] * 3))


def noisy(rate: float, seed: int) -> Evaluation:
    """A classifier that errs on a share of the images by chance."""
    return errs_on(np.flatnonzero(np.random.default_rng(seed).random(300) < rate).tolist())


def test_choose_takes_the_highest_validation_accuracy():
    trials = [trial(0, BASELINE, value=0.7), trial(1, WINNER, value=0.9), trial(2, WINNER, value=0.8)]
    assert choose(trials) == trials[1]


def test_choose_takes_the_earlier_of_equals_in_any_order():
    trials = [trial(0, BASELINE, value=0.7), trial(1, WINNER, value=0.9), trial(2, WINNER, value=0.9)]
    assert choose(reversed(trials)) == trials[1]


@pytest.mark.parametrize("state", ["pruned", "failed", "running"])
def test_choose_ignores_what_is_not_complete(state):
    trials = [trial(0, BASELINE, value=0.7), trial(1, WINNER, value=0.6), trial(2, WINNER, state=state, value=0.9)]
    assert choose(trials) == trials[0]


def test_choose_ignores_refits():
    trials = [trial(0, BASELINE, value=0.7), trial(1, WINNER, value=0.9)]
    assert choose([*trials, trial(2, BASELINE, stage="final", value=1.0)]) == trials[1]


def test_choose_needs_no_complete_baseline():
    trials = [trial(0, BASELINE, state="failed"), trial(1, WINNER, value=0.9)]
    assert choose(trials) == trials[1]


@pytest.mark.parametrize("other", [[], [trial(1, WINNER, state="pruned")], [trial(1, BASELINE, value=0.7)]])
def test_choose_returns_a_baseline_that_nothing_beats(other):
    baseline = trial(0, BASELINE, value=0.7)
    assert choose([baseline, *other]) == baseline


def test_choose_takes_the_best_pruned_trial_if_none_is_complete():
    epochs = [
        (EpochResult(1, 2.0, 3.0, 10.0, val_loss=1.0, val_confusion=[[right, 8 - right], [0, 0]]),) for right in (5, 7)
    ]
    pruned = [
        replace(trial(number, WINNER, state="pruned", reason="pruned"), epochs=each, last_score=each[0].val_accuracy)
        for number, each in enumerate(epochs, start=1)
    ]
    assert choose([trial(0, BASELINE, state="failed"), *pruned]) == pruned[1]


@pytest.mark.parametrize("state", ["pruned", "failed", "running"])
def test_choose_needs_a_validation_accuracy(state):
    assert choose([trial(0, BASELINE, state=state)]) is None


def test_final_seeds_are_distinct_and_fit_everywhere():
    seeds = final_seeds(0, 50)
    assert len(set(seeds)) == 50
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_final_seeds_are_a_function_of_the_seed():
    assert final_seeds(5, 3) == final_seeds(5, 3)
    assert not set(final_seeds(5, 3)) & set(final_seeds(6, 3))


def test_final_seeds_stay_when_more_are_asked_for():
    assert final_seeds(5, 4)[:3] == final_seeds(5, 3)


@pytest.mark.parametrize(("depth", "order"), [(2, (1, 0)), (1, (0, 1)), (0, (0, 1))])
def test_plan_finals_goes_pair_by_pair_the_deeper_first(depth, order):
    recipes = [BASELINE, replace(WINNER, unfreeze_depth=depth)]
    planned = plan([], winner=trial(7, recipes[1], value=0.9), seed=5, repeats=2)
    assert planned == [Plan(None, "final", recipes[index], seed) for seed in final_seeds(5, 2) for index in order]


def test_plan_finals_refits_a_baseline_that_won_alone():
    planned = plan([], winner=trial(0, BASELINE, value=0.9), seed=5, repeats=2)
    assert planned == [Plan(None, "final", BASELINE, seed) for seed in final_seeds(5, 2)]


@pytest.mark.parametrize("ended", range(5))
def test_plan_finals_plans_what_has_not_ended(ended):
    planned = plan([], repeats=2)
    trials = [replace(t, state="complete" if t.number < ended else "waiting") for t in refits(planned)]
    assert plan(trials, repeats=2) == planned[ended:]


@pytest.mark.parametrize(
    ("gained", "more"),
    [
        ([60, 60], True),
        ([9, -9], False),
        ([60, 60, 60], False),
        ([0, 0, 0], False),
        ([-9, 4, 4], False),
        ([9, 4, -4], True),
        ([9, 4, -4, 4, 0, 3], False),
    ],
    ids=["two pairs", "no gain of two pairs", "better", "no gain", "a loss", "not clear", "six pairs"],
)
def test_plan_finals_adds_pairs_while_the_answer_is_open(gained, more):
    trials = refits(plan([], repeats=len(gained)), gained)
    seed = final_seeds(0, len(gained) + 1)[-1]
    assert plan(trials) == ([Plan(None, "final", recipe, seed) for recipe in (WINNER, BASELINE)] if more else [])


def test_plan_finals_begins_with_two_pairs():
    assert plan([]) == plan([], repeats=2)


def test_plan_finals_refits_a_baseline_that_won_thrice():
    winner = trial(0, BASELINE, value=0.9)
    assert plan([], winner=winner) == plan([], winner=winner, repeats=3)


def test_plan_finals_adds_no_pair_for_a_baseline_that_won():
    winner = trial(0, BASELINE, value=0.9)
    assert plan(refits(plan([], winner=winner), [0, 0, 0]), winner=winner) == []


def test_plan_finals_adds_no_pair_where_every_refit_failed():
    trials = [replace(t, state="failed", test=None) for t in refits(plan([], repeats=3), [9, 4, -4])]
    assert plan(trials) == []


def test_judge_widens_the_interval_of_an_early_stop():
    trials = refits(plan([], repeats=3), [9, 9, 4])
    plain, early = verdict_on(trials).comparison.difference, verdict_on(trials, stops_early=True).comparison.difference
    assert early.low < plain.low < plain.high < early.high
    assert early.p == pytest.approx(min(1, plain.p * 0.05 / 0.0056))


def test_judge_allows_for_no_looks_where_nothing_is_gained():
    trials = refits(plan([]), [-9, 4])
    assert verdict_on(trials, stops_early=True).comparison == verdict_on(trials).comparison


def test_judge_corrects_for_earlier_verdicts_on_the_test_images():
    trials = refits(plan([], repeats=3), [7, 8, 6])
    alone, corrected = verdict_on(trials), verdict_on(trials, earlier=[0.5] * 20)
    assert (alone.decision, corrected.decision) == ("better", "no better")
    p = alone.comparison.difference.p
    assert (alone.comparison.corrected_p, corrected.comparison.corrected_p) == (p, pytest.approx(21 * p))
    assert "verdict number 21 on these test images" in sentence(corrected)


def test_plan_finals_goes_on_until_the_corrected_p_value_decides():
    trials = refits(plan([], repeats=3), [60, 55, 50])
    assert plan(trials) == []
    assert len(plan(trials, earlier=[1.0] * 10**6)) == 2


def test_judge_calls_a_clear_gain_better():
    verdict = better()
    assert verdict.decision == "better"
    assert verdict.comparison.difference.mean == pytest.approx(0.2)
    assert 0.1 < verdict.comparison.difference.low < 0.2 < verdict.comparison.difference.high < 0.3


def test_judge_gives_the_sides_means_and_spread_by_hand():
    """Wrong 90, 60 and 30 of 300: accuracies 0.7, 0.8 and 0.9, with a standard deviation of 0.1."""
    winner = [errs_on(range(count)) for count in (90, 60, 30)]
    verdict = verdict_on(finals([errs_on(range(90))] * 3, winner))
    side = verdict.comparison.winner
    assert side.accuracies == [0.7, 0.8, 0.9]
    assert (side.mean, side.std) == (pytest.approx(0.8), pytest.approx(0.1))
    assert (verdict.baseline.mean, verdict.baseline.std) == (pytest.approx(0.7), pytest.approx(0))


def test_judge_gives_mcnemars_p_of_each_seed():
    """Five images won and none lost: 2 · (1/2)^5; none of either: 1."""
    winner = [errs_on(range(85)), errs_on(range(90)), errs_on(range(90))]
    verdict = verdict_on(finals([errs_on(range(90))] * 3, winner))
    assert verdict.comparison.mcnemar_p == pytest.approx([2 / 32, 1, 1])


def test_judge_calls_the_same_predictions_no_better():
    tests = [errs_on(range(count)) for count in (50, 60, 70)]
    verdict = verdict_on(finals(tests, tests))
    assert (verdict.decision, verdict.comparison.difference.mean) == ("no better", 0)
    assert verdict.comparison.difference.low == -verdict.comparison.difference.high < 0


def test_judge_calls_equal_models_no_better():
    verdict = verdict_on(finals([noisy(0.3, seed) for seed in (1, 2, 3)], [noisy(0.3, seed) for seed in (4, 5, 6)]))
    assert verdict.decision == "no better"
    assert verdict.comparison.difference.low < 0 < verdict.comparison.difference.high


def test_judge_calls_a_clear_loss_worse():
    verdict = verdict_on(finals([errs_on(range(30))] * 3, [errs_on(range(90))] * 3))
    assert (verdict.decision, verdict.comparison.difference.mean) == ("worse", pytest.approx(-0.2))


def test_judge_pairs_by_seed_whatever_the_order_of_the_trials():
    trials = finals([noisy(0.3, seed) for seed in (1, 2, 3)], [noisy(0.25, seed) for seed in (4, 5, 6)])
    shuffled = [trials[index] for index in (3, 0, 5, 2, 4, 1)]
    assert verdict_on(shuffled) == verdict_on(trials)


def test_judge_pairs_by_seed_not_by_order_of_the_plan():
    """Of each seed both recipes err on the same images; paired otherwise, they would differ in each pair."""
    baseline = [trial(20 + i, BASELINE, stage="final", seed=SEEDS[i], test=noisy(0.3, i)) for i in range(3)]
    winner = [trial(30 - i, WINNER, stage="final", seed=SEEDS[i], test=noisy(0.3, i)) for i in range(3)]
    assert verdict_on(baseline + winner).comparison.mcnemar_p == [1, 1, 1]


def test_judge_reads_refits_only():
    """A search's own trials of the same recipes may stand among them."""
    trials = finals([errs_on(range(90))] * 3, [errs_on(range(30))] * 3)
    assert verdict_on([trial(0, BASELINE, value=0.9), trial(7, WINNER, value=0.95), *trials]) == verdict_on(trials)


@pytest.mark.parametrize("side", [0, 1])
def test_judge_drops_the_pair_of_a_failed_refit(side):
    sides = [[errs_on(range(90))] * 3, [errs_on(range(30))] * 3]
    sides[side] = [sides[side][0], "out of memory.", sides[side][2]]
    verdict = verdict_on(finals(*sides))
    assert (verdict.seeds, verdict.seeds_planned) == ([11, 13], 3)
    assert len(verdict.baseline.accuracies) == len(verdict.comparison.winner.accuracies) == 2
    assert verdict.missing == [f"#final-{22 + side} {('baseline', 'winner')[side]}: out of memory."]
    assert "2 of 3 seeds" in sentence(verdict)


def test_judge_takes_a_refit_that_was_run_again():
    trials = finals([errs_on(range(90)), "out of memory.", errs_on(range(90))], [errs_on(range(30))] * 3)
    again = trial(26, BASELINE, stage="final", seed=12, test=errs_on(range(90)))
    verdict = verdict_on([*trials, again])
    assert (verdict.seeds, verdict.missing) == ([11, 12, 13], [])


def test_judge_takes_the_first_complete_refit_of_a_seed():
    trials = finals([errs_on(range(90))] * 3, [errs_on(range(30))] * 3)
    again = trial(26, BASELINE, stage="final", seed=12, test=errs_on([]))
    assert verdict_on([again, *trials]) == verdict_on(trials)


def test_judge_gives_no_verdict_without_a_whole_pair():
    verdict = verdict_on(finals(["lost.", errs_on([]), "lost."], [errs_on([]), "lost.", "lost."]))
    assert (verdict.decision, verdict.comparison, verdict.optimism, verdict.seeds) == (None, None, None, [])
    assert len(verdict.missing) == 4
    assert sentence(verdict) == "No verdict: none of 3 seeds has complete refits of both recipes."


def test_judge_names_the_state_of_a_refit_without_reason():
    verdict = verdict_on([trial(20, BASELINE, stage="final", state="waiting")])
    assert verdict.missing == ["#final-20 baseline: waiting."]


def test_judge_with_one_seed_has_no_spread():
    verdict = verdict_on(finals([errs_on(range(90))], [errs_on(range(30))]))
    assert (verdict.decision, verdict.baseline.std, verdict.comparison.winner.std) == ("better", None, None)
    assert sentence(verdict).endswith("1 seed). With one seed, this compares two trained classifiers, not two recipes.")
    assert dict(details(verdict))["p-value"].endswith(", for new test images, not for new seeds")
    several = verdict_on(finals([errs_on(range(90))] * 2, [errs_on(range(30))] * 2))
    assert dict(details(several))["p-value"].endswith(", for new test images and new seeds")


def test_judge_measures_optimism_against_the_mean_test_accuracy():
    """0.95 on validation, and 0.7, 0.8 and 0.9 on test."""
    winner = [errs_on(range(count)) for count in (90, 60, 30)]
    assert verdict_on(finals([errs_on(range(90))] * 3, winner)).optimism == pytest.approx(0.15)


def test_judge_sums_the_confusions_and_their_difference_by_hand():
    """Of images 0 to 29 each class has ten, taken for the next class; of all 100 a class the rest is right."""
    verdict = verdict_on(finals([errs_on(range(30))] * 2, [errs_on(())] * 2))
    assert verdict.baseline.confusion == [[180, 20, 0], [0, 180, 20], [20, 0, 180]]
    assert verdict.comparison.winner.confusion == [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    assert verdict.comparison.confusion_difference == [[20, -20, 0], [0, 20, -20], [-20, 0, 20]]


def test_judge_gives_the_hardest_pairs_before_and_after_by_hand():
    """The baseline takes 30 cats for dogs and 9 dogs for ships with each seed, the winner 5 and 12."""
    cats, dogs = range(0, 300, 3), range(1, 300, 3)
    before, after = errs_on({*cats[:30], *dogs[:9]}), errs_on({*cats[:5], *dogs[:12]})
    verdict = verdict_on(finals([before] * 2, [after] * 2))
    comparison = verdict.comparison
    assert asdict(comparison.hardest_before) == {"classes": ["cat", "dog"], "baseline": 60, "winner": 10}
    assert asdict(comparison.hardest_after) == {"classes": ["dog", "ship"], "baseline": 18, "winner": 24}
    assert [text for name, text in details(verdict) if name == "hardest pair"] == [
        "of the baseline: cat and dog, confused 60 times by the baseline, 10 times by the winner",
        "of the winner: dog and ship, confused 18 times by the baseline, 24 times by the winner",
    ]


def test_details_name_one_hardest_pair_once():
    verdict = verdict_on(finals([errs_on(range(0, 90, 3))] * 2, [errs_on(range(0, 30, 3))] * 2))
    pairs = [text for name, text in details(verdict) if name == "hardest pair"]
    assert pairs == ["of both: cat and dog, confused 60 times by the baseline, 20 times by the winner"]


def test_judge_refuses_labels_in_another_order():
    with pytest.raises(AssertionError, match="labels must be those"):
        judge(
            finals([errs_on([])], [errs_on([])]),
            labels=sorted(LABELS),
            baseline=BASELINE,
            winner=trial(7, WINNER, value=0.9),
            classes=CLASSES,
        )


def test_judge_compares_nothing_where_the_baseline_won():
    refits = finals([errs_on(range(90))] * 3, [errs_on(range(30))] * 3)[::2]
    verdict = verdict_on(refits, winner=trial(0, BASELINE, value=0.75))
    assert (verdict.decision, verdict.comparison, verdict.changes) == ("no better", None, {})
    assert (verdict.baseline.mean, verdict.optimism) == (pytest.approx(0.7), pytest.approx(0.05))
    assert sentence(verdict) == (
        "Not shown to be better than the baseline: no other completed recipe of the search reached a higher validation"
        " accuracy."
    )


@pytest.mark.parametrize(
    "verdict",
    [
        better(),
        verdict_on(finals(["lost."], ["lost."])),
        verdict_on([], winner=trial(0, BASELINE, value=0.75)),
    ],
    ids=["better", "no pair", "the baseline won"],
)
def test_verdict_survives_json(verdict):
    assert json.loads(json.dumps(asdict(verdict))) == asdict(verdict)


def test_sentence_names_what_was_changed_and_the_interval():
    verdict = better()
    low, high = 100 * verdict.comparison.difference.low, 100 * verdict.comparison.difference.high
    assert sentence(verdict) == (
        "Better than the baseline: the search's best recipe (depth 2, lr 0.00031) raises the test accuracy by 20.0 "
        f"percentage points (95 % interval {low:.1f} to {high:.1f}, 3 seeds)."
    )


def test_sentence_names_the_gain_that_would_have_been_found():
    verdict = verdict_on(finals([noisy(0.3, seed) for seed in (1, 2, 3)], [noisy(0.3, seed) for seed in (4, 5, 6)]))
    difference = verdict.comparison.difference
    mean, low, high = (f"{100 * value:.1f}" for value in (difference.mean, difference.low, difference.high))
    assert sentence(verdict) == (
        "Not shown to be better than the baseline: the search's best recipe (depth 2, lr 0.00031) changes the test "
        f"accuracy by {mean} percentage points (95 % interval {low} to {high}, 3 seeds). A true gain of "
        f"{100 * difference.detectable:.1f} points would have been found by 4 of 5 such studies."
    )


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_no_bound_and_no_gain_is_beyond_what_is_possible(metric):
    """Two seeds that differ wildly cannot show anything."""
    refits = finals([errs_on(range(5)), errs_on(range(140))], [errs_on(range(150)), errs_on(range(5))])
    verdict = verdict_on(refits, metric=metric)
    difference = verdict.comparison.difference
    assert (difference.low, difference.high) == (-1, 1)
    assert "(95 % interval -100.0 to 100.0, 2 seeds)" in sentence(verdict)
    assert sentence(verdict).endswith(
        " Not even the largest possible gain would have been found by 4 of 5 such studies."
        " Use more seeds or test images."
    )


def test_sentence_says_plainly_that_nothing_was_gained():
    tests = [errs_on(range(60))] * 3
    assert sentence(verdict_on(finals(tests, tests))) == (
        "Not shown to be better than the baseline: the search's best recipe (depth 2, lr 0.00031) changes the test "
        "accuracy by 0 percentage points, the same with every seed and every image (3 seeds)."
    )


def test_sentence_says_worse():
    verdict = verdict_on(finals([errs_on(range(30))] * 3, [errs_on(range(90))] * 3))
    assert sentence(verdict).startswith("Worse than the baseline: the search's best recipe (depth 2, lr 0.00031) ")
    assert "by -20.0 percentage points" in sentence(verdict)


def test_sentence_of_a_search_without_a_candidate():
    assert sentence(None) == "No verdict: no trial of the search has a result."


def test_details_give_both_sides_and_what_is_missing():
    lines = details(verdict_on(finals([errs_on(range(90))] * 2 + ["lost."], [errs_on(range(30))] * 3)))
    assert lines[:2] == [
        ("baseline", "test accuracy 70.00 % ± 0.00; by seed: 70.00, 70.00; largest class 33.33%"),
        ("winner", "test accuracy 90.00 % ± 0.00; by seed: 90.00, 90.00; largest class 33.33%"),
    ]
    optimism = "5.0 percentage points: validation accuracy in the search (95.00%, trial 7) minus mean test accuracy"
    assert ("optimism", optimism) in lines
    assert lines[-1] == ("missing", "#final-24 baseline: lost.")


def test_stored_verdict_of_an_old_record_is_read():
    record = Record.read(RECORDS / "search")
    verdict, noted = asdict(stored_verdict(record)), record.noted("verdict")
    difference = verdict["comparison"].pop("difference")
    assert difference == {**noted["comparison"].pop("difference"), "p": None, "detectable": None}
    winner = noted.pop("comparison")["winner"]
    assert verdict["comparison"]["winner"] == {**winner, "values": []}
    assert verdict["baseline"] == {**noted.pop("baseline"), "values": []}
    assert {key: verdict[key] for key in noted} == noted


def test_choose_breaks_ties_by_validation_loss():
    def tied(number, loss):
        epoch = EpochResult(1, 2.0, 3.0, 10.0, val_loss=loss, val_confusion=[[5, 3], [0, 0]])
        return replace(trial(number, WINNER, value=0.7), epochs=(epoch,))

    trials = [tied(0, 0.9), tied(1, 0.5), tied(2, 0.5)]
    assert choose(trials) == trials[1]


def on_metric(metric, baseline, winner):
    return judge(
        finals(baseline, winner),
        labels=LABELS,
        baseline=BASELINE,
        winner=trial(7, WINNER, value=0.95),
        classes=CLASSES,
        metric=metric,
    )


def test_judge_compares_by_the_metric_of_the_study():
    verdict = on_metric("macro_f1", [errs_on(range(90))] * 3, [errs_on(range(30))] * 3)
    assert verdict.decision == "better"
    sides = verdict.baseline, verdict.comparison.winner
    assert [side.values for side in sides] == [pytest.approx([0.7] * 3), pytest.approx([0.9] * 3)]
    assert "raises the test macro F1 by 20.0 percentage points" in sentence(verdict)


def test_judge_counts_a_lower_log_loss_as_better():
    tests = [[replace(errs_on(range(9)), loss=loss, losses=[loss] * 300)] * 3 for loss in (0.9, 0.4)]
    verdict = on_metric("log_loss", *tests)
    assert verdict.decision == "better"
    assert "changes the test log loss by -0.5 (95 % interval -0.5 to -0.5" in sentence(verdict)


def test_verdict_marks_a_winner_that_has_learnt_nothing():
    only_cats = Evaluation(1.0, [[100, 0, 0]] * 3, [0] * 300)
    verdict = verdict_on(finals([errs_on(range(150))] * 3, [only_cats] * 3))
    assert verdict.comparison.hardest_after is None
    assert sentence(verdict).endswith("But the winner has learnt nothing: every image is predicted as cat.")
    assert ("winner", "has learnt nothing: every image is predicted as cat") in details(verdict)


def test_sentence_never_prints_a_bound_as_zero():
    verdict = better()
    bounds = replace(verdict.comparison, difference=Difference(0.0123, -0.0001, 0.03))
    assert "95 % interval -0.01 to 3.00" in sentence(replace(verdict, decision="no better", comparison=bounds))


def test_sentence_warns_of_a_baseline_that_has_learnt_nothing():
    only_cats = Evaluation(1.0, [[100, 0, 0]] * 3, [0] * 300)
    verdict = verdict_on(finals([only_cats] * 3, [only_cats] * 3)[::2], winner=trial(0, BASELINE, value=0.4))
    assert sentence(verdict).endswith("But the baseline has learnt nothing: every image is predicted as cat.")
    both = verdict_on(finals([only_cats] * 3, [only_cats] * 3))
    assert sentence(both).endswith("But both recipes have learnt nothing: every image is predicted as cat.")
