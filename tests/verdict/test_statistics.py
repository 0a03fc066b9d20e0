"""Statistics with answers known by hand, by symmetry, from scipy or by simulation."""

from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from study.verdict.statistics import (
    LOOKS,
    Difference,
    accuracy_interval,
    compare_recipes,
    decide,
    hardest_pair,
    holm,
    mcnemar_exact,
)


def flags(right: int, images: int) -> np.ndarray:
    return np.arange(images) < right


def equal_recipes(rng: np.random.Generator, seeds: int, images: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of two recipes of one quality: images differ in difficulty, seeds differ by `spread`."""
    difficulty = rng.normal(0.8, 1.5, images)
    skill = rng.normal(0, spread, (2, seeds, 1))
    before, after = difficulty + skill + rng.normal(0, 1, (2, seeds, images)) > 0
    return before, after


def simulate(
    rng: np.random.Generator, seeds: int, images: int, spread: float, gain: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions at an accuracy of about 80 %; seeds deviate by `spread` points, the second recipe gains `gain`.

    A probit model: images differ in difficulty, for both recipes and for each, and a classifier adds noise.
    """
    scale = np.sqrt(1.5**2 + 0.5**2 + 1)
    levels = scale * stats.norm.ppf([0.8, 0.8 + gain / 100])
    points = 100 * stats.norm.pdf(levels[0] / scale) / scale
    skill = rng.normal(0, spread / points, (2, seeds, 1))
    difficulty = rng.normal(0, 1.5, images) + rng.normal(0, 0.5, (2, 1, images))
    before, after = levels[:, None, None] + skill + difficulty + rng.normal(0, 1, (2, seeds, images)) > 0
    return before, after


def test_accuracy_interval_is_wilsons():
    """For 8 of 10 and z = 1.96 Wilson's formula gives (0.490, 0.943)."""
    assert accuracy_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize("right", [0, 10])
def test_accuracy_interval_stays_in_the_unit_interval(right):
    low, high = accuracy_interval(right, 10)
    assert 0 <= low < high <= 1


def test_accuracy_interval_widens_with_confidence():
    low, high = accuracy_interval(80, 100, confidence=0.8)
    wider_low, wider_high = accuracy_interval(80, 100, confidence=0.99)
    assert wider_low < low < high < wider_high


def test_mcnemar_exact_by_hand():
    """Five images won and none lost: 2 · (1/2)^5."""
    assert mcnemar_exact(flags(3, 20), flags(8, 20)) == pytest.approx(2 / 32)


def test_mcnemar_exact_is_one_without_discordant_images():
    assert mcnemar_exact(flags(5, 10), flags(5, 10)) == 1.0


def test_mcnemar_is_one_for_equal_wins_and_losses():
    assert mcnemar_exact(flags(5, 10), ~flags(5, 10)) == pytest.approx(1.0)


def test_mcnemar_exact_ignores_concordant_images():
    before, after = flags(3, 20), flags(8, 20)
    longer = np.concatenate([before, flags(500, 1000)]), np.concatenate([after, flags(500, 1000)])
    assert mcnemar_exact(*longer) == mcnemar_exact(before, after)


def test_compare_recipes_of_the_same_predictions_is_zero():
    same = np.stack([flags(70, 100), flags(70, 100)])
    assert compare_recipes(same, same) == Difference(0.0, 0.0, 0.0, p=1.0, detectable=0.0)


def test_compare_recipes_mean_is_the_difference_of_accuracies():
    before, after = np.stack([flags(60, 100), flags(70, 100)]), np.stack([flags(80, 100), flags(74, 100)])
    assert compare_recipes(before, after).mean == pytest.approx(0.12)


@pytest.mark.parametrize("axis", [1, 2], ids=["seeds", "images"])
def test_compare_recipes_depends_on_no_order(axis):
    recipes = np.stack(equal_recipes(np.random.default_rng(0), 3, 200, 0.1))
    found, turned = compare_recipes(*recipes), compare_recipes(*np.flip(recipes, axis))
    assert asdict(turned) == pytest.approx(asdict(found))


def test_compare_recipes_turns_its_sign_when_swapped():
    before, after = equal_recipes(np.random.default_rng(0), 3, 1000, 0.1)
    forth, back = compare_recipes(before, after), compare_recipes(after, before)
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert (forth.p, forth.detectable) == pytest.approx((back.p, back.detectable))


def test_compare_recipes_where_only_seeds_differ_is_welchs_t_test():
    """Each seed is right on all images or on none, so images carry no chance of their own."""
    before, after = (np.repeat(np.array(right)[:, None], 50, axis=1) for right in ([0, 0, 1, 0], [1, 1, 0, 1]))
    reference = stats.ttest_ind(after[:, 0], before[:, 0], equal_var=False)
    interval = reference.confidence_interval()
    ours = compare_recipes(before == 1, after == 1)
    assert (ours.low, ours.high, ours.p) == pytest.approx((interval.low, interval.high, reference.pvalue))


def test_compare_recipes_of_one_seed_is_the_paired_t_test():
    before, after = equal_recipes(np.random.default_rng(0), 1, 500, 0.0)
    reference = stats.ttest_rel(after[0].astype(float), before[0].astype(float))
    low, high = reference.confidence_interval()
    ours = compare_recipes(before, after)
    assert (ours.low, ours.high, ours.p) == pytest.approx((low, high, reference.pvalue))


@pytest.mark.parametrize("shift", [0.0, -0.1])
def test_compare_recipes_of_losses_covers_the_truth(shift):
    """Losses are log-normal, exp(m + s²/2) on average; with no true gain, at most 3 % of the intervals lie above 0."""
    generator = np.random.default_rng(0)
    true_gain = np.exp(-1 + (0.8**2 + 0.1**2 + 0.3**2) / 2) * (1 - np.exp(shift))
    held = above = 0
    for _ in range(1000):
        common = generator.normal(-1, 0.8, 200)
        before, after = (
            -np.exp(common + side + generator.normal(0, 0.1, (3, 1)) + generator.normal(0, 0.3, (3, 200)))
            for side in (0.0, shift)
        )
        found = compare_recipes(before, after)
        held += found.low <= true_gain <= found.high
        above += found.low > 0
    assert held >= 930
    assert shift or above <= 30


def test_compare_recipes_of_equal_seeds_covers_images_only():
    before, after = equal_recipes(np.random.default_rng(0), 1, 500, 0.0)
    assert compare_recipes(np.repeat(before, 3, 0), np.repeat(after, 3, 0)) == compare_recipes(before, after)


def test_compare_recipes_narrows_with_more_seeds():
    before, after = equal_recipes(np.random.default_rng(0), 10, 1000, 0.1)
    few, many = compare_recipes(before[:3], after[:3]), compare_recipes(before, after)
    assert many.high - many.low < few.high - few.low
    assert many.detectable < few.detectable


@pytest.mark.parametrize("level", [0.05, 0.0056])
def test_compare_recipes_p_agrees_with_the_interval(level):
    rng = np.random.default_rng(0)
    for _ in range(50):
        before, after = equal_recipes(rng, 3, 100, 0.1)
        found = compare_recipes(before, after | (rng.random(after.shape) < 0.2), level=level)
        assert (found.p <= 0.05) == (found.low > 0 or found.high < 0)


def test_compare_recipes_of_a_stricter_level_is_wider():
    recipes = equal_recipes(np.random.default_rng(0), 3, 200, 0.1)
    plain, strict = compare_recipes(*recipes), compare_recipes(*recipes, level=0.01)
    assert strict.low < plain.low < plain.high < strict.high
    assert strict.p == pytest.approx(min(1.0, 5 * plain.p))


@pytest.mark.parametrize("seeds", [2, 3, 6])
@pytest.mark.parametrize("spread", [0, 1, 3], ids="seed deviation {}".format)
def test_compare_recipes_of_equal_recipes_in_simulations(seeds, spread):
    """At most 3 % better and 93 % covered, with twice the standard error of 1,000 cases; docs/verdict.md has more."""
    rng = np.random.default_rng(seeds)
    found = [compare_recipes(*simulate(rng, seeds, 300, spread)) for _ in range(1000)]
    assert sum(decide(each) == "better" for each in found) <= 30 + 2 * 5
    assert sum(each.low <= 0 <= each.high for each in found) >= 930


@pytest.mark.parametrize("spread", [0, 3], ids="seed deviation {}".format)
def test_looks_of_a_verdict_that_stops_early_keep_its_level(spread):
    """At most 3 % of equal recipes are called better at any look, with twice the standard error of 600 cases."""
    rng = np.random.default_rng(0)
    better = 0
    for _ in range(600):
        before, after = simulate(rng, 6, 200, spread)
        for seeds, level in LOOKS.items():
            found = compare_recipes(before[:seeds], after[:seeds], level=level)
            if found.low > 0 or found.mean <= 0:
                better += found.low > 0
                break
    assert better <= 18 + 2 * 4


def test_compare_recipes_finds_what_it_calls_detectable():
    """The named difference is added to the truth of each case: 80 % of the cases must then be called better."""
    rng = np.random.default_rng(0)
    cases = [compare_recipes(*simulate(rng, 3, 500, 1)) for _ in range(500)]
    typical = float(np.median([case.detectable for case in cases]))
    found = [compare_recipes(*simulate(rng, 3, 500, 1, gain=100 * typical)) for _ in range(500)]
    assert sum(decide(case) == "better" for case in found) / 500 == pytest.approx(0.8, abs=0.07)


@pytest.mark.parametrize("images", [50, 1000])
@pytest.mark.parametrize("lost", [1, 2, 3, 5, 8, 12])
def test_few_changed_answers_do_not_promise_too_much(images, lost):
    """With one seed and true gains alone, the number of won images is binomial, so the power is a sum."""
    before, after = np.ones((2, 1, images), dtype=bool)
    after[0, :lost] = False
    promised = compare_recipes(before, after).detectable
    found = []
    for won in range(40):
        after = np.arange(images)[None] < won
        found.append(decide(compare_recipes(np.zeros_like(after), after)) == "better")
    assert stats.binom.pmf(np.arange(40), images, promised) @ found >= 0.8


def test_decide_sees_a_clear_gain():
    """Ten points more on 1,000 images, with three seeds that differ as trained networks do."""
    rng = np.random.default_rng(0)
    before = rng.random((3, 1000)) < np.array([[0.70], [0.71], [0.69]])
    after = before | (rng.random((3, 1000)) < np.array([[0.33], [0.34], [0.35]]))
    assert decide(compare_recipes(before, after)) == "better"
    assert decide(compare_recipes(after, before)) == "worse"


def test_holm_by_hand():
    """Ranked .01, .02, .04: times 3, 2 and 1, and never below the one before."""
    assert holm(0.01, [0.04, 0.02]) == pytest.approx(0.03)
    assert holm(0.02, [0.04, 0.01]) == pytest.approx(0.04)
    assert holm(0.04, [0.02, 0.01]) == pytest.approx(0.04)


@pytest.mark.parametrize("p", [0.0, 0.03, 1.0])
def test_holm_of_a_single_test_changes_nothing(p):
    assert holm(p, []) == p


def test_holm_never_lowers_a_p_value():
    rng = np.random.default_rng(0)
    for _ in range(100):
        p, *others = rng.random(5)
        assert p <= holm(p, others) <= min(1, 5 * p)


def test_decide_needs_the_corrected_p_value_too():
    difference = Difference(0.02, 0.001, 0.04, p=0.04)
    assert decide(difference, []) == "better"
    assert decide(difference, [0.001]) == "better"
    assert decide(difference, [0.5]) == "no better"


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [(0.01, 0.02, "better"), (0.0, 0.02, "no better"), (-0.01, 0.0, "no better"), (-0.02, -0.01, "worse")],
)
def test_decide_needs_the_whole_interval_on_one_side(low, high, decision):
    assert decide(Difference((low + high) / 2, low, high)) == decision


def test_hardest_pair_adds_both_directions():
    """Classes 1 and 2 are confused 4 + 5 times, more than the single largest count of 8."""
    confusion = np.array([[90, 8, 0], [0, 80, 4], [1, 5, 70]])
    assert hardest_pair(confusion) == (1, 2, 4, 5)


def test_hardest_pair_takes_the_first_of_a_tie():
    confusion = np.array([[9, 1, 2], [2, 9, 0], [1, 3, 9]])
    assert hardest_pair(confusion) == (0, 1, 1, 2)


def test_hardest_pair_ignores_the_diagonal():
    assert hardest_pair(np.diag([9, 9, 9])) == (0, 1, 0, 0)
