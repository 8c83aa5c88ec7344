"""Paired comparison of two policies: hand values, invariants, coverage."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignflow.evaluation.win_rates import (
    Interval,
    PromptMismatchError,
    Resampling,
    WinRate,
    agreement,
    bootstrap_interval,
    corrected,
    holm,
    mean,
    outcomes,
    rate_of,
    same_order,
    sign_flip_test,
)

RESAMPLING = Resampling(samples=2000, confidence=0.95, seed=7)


def win_rate(scores, reference_scores, resampling: Resampling) -> WinRate:
    """Compare answers, one to each prompt."""
    return rate_of(outcomes(scores[:, None], reference_scores[:, None])[:, :, 0], resampling)


paired_scores = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=40).map(
    lambda pairs: np.array(pairs, dtype=np.float64).T
)


def test_a_tie_counts_half():
    """Scores 3>1, 2=2, 0<5, 4>1: two wins, one tie, one loss, so (2 + 1/2) / 4 = 0.625."""
    result = win_rate(np.array([3.0, 2, 0, 4]), np.array([1.0, 2, 5, 1]), RESAMPLING)
    assert (result.wins, result.ties, result.losses, result.prompts) == (2, 1, 1, 4)
    assert result.rate == 0.625


def test_outcomes_are_win_tie_and_loss():
    assert outcomes(np.array([[2.0], [1], [0]]), np.ones((3, 1))).ravel().tolist() == [1.0, 0.5, 0.0]


def test_every_answer_meets_every_answer_and_the_prompt_counts_once():
    """First prompt 1 and 3 against 2 and 0: pairs 0, 1, 1, 1; second 5 against 5 and 5: four ties.

    Rates 3/4 and 1/2, mean 5/8; the first prompt is won, the second tied.
    """
    pairs = outcomes(np.array([[1.0, 3], [5, 5]]), np.array([[2.0, 0], [5, 5]]))
    assert pairs.tolist() == [[[0, 1], [1, 1]], [[0.5, 0.5], [0.5, 0.5]]]
    result = rate_of(pairs.reshape(2, 4), RESAMPLING)
    assert (result.wins, result.ties, result.losses, result.rate) == (1, 1, 0, 0.625)
    assert result.interval == Interval(0.5, 0.75)


def test_sign_flip_test_by_hand():
    """Balances 3, 2, -1: sums of signed 3, 2, 1 are +-6, +-4, +-2, 0, 0 (eight); at least 4 apart from 0 are four."""
    assert sign_flip_test(np.array([3, 2, -1])) == pytest.approx(4 / 8)
    assert sign_flip_test(np.array([3, 2, 1])) == pytest.approx(2 / 8)
    assert sign_flip_test(np.array([4, 0, -4])) == pytest.approx(1.0)
    assert sign_flip_test(np.zeros(3, dtype=np.int64)) == 1.0


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
def test_the_sign_flip_test_counts_all_signs(balances):
    """By enumeration of all 2^P signs."""
    flips = np.array(list(product((-1, 1), repeat=len(balances)))) @ np.abs(balances)
    expected = (np.abs(flips) >= abs(sum(balances))).mean()
    assert sign_flip_test(np.array(balances)) == pytest.approx(expected, abs=1e-12)


def test_with_one_answer_a_prompt_it_is_the_sign_test():
    """Nine of ten: P(X >= 9) = (10 + 1) / 1024, doubled 22/1024, ties left out. 2**5000 is no float: at 2600 of 5000,

    z = 99.5 * 2 / sqrt(5000) = 2.814 and p = 0.0049.
    """
    signs = np.array([1] * 9 + [-1] + [0] * 5)
    assert sign_flip_test(signs) == pytest.approx(22 / 1024)
    assert sign_flip_test(np.repeat([1, -1], [5, 5])) == pytest.approx(1.0)
    assert sign_flip_test(np.repeat([1, -1], [2600, 2400])) == pytest.approx(0.0049, abs=5e-5)


def test_the_test_errs_as_rarely_as_promised_with_several_answers_a_prompt():
    """400 experiments of 60 prompts, two equal policies, prompts that differ, 3 x 3 pairs: p below 0.05 in 5 %.

    Binomial(400, 0.05) exceeds 36 less than once in a thousand, and a discrete test errs a little less.
    """
    random = np.random.default_rng(5)
    errors = 0
    for _ in range(400):
        prompt = random.normal(size=(60, 1))
        one, other = (prompt + random.normal(size=(60, 3)) for _ in range(2))
        errors += rate_of(outcomes(one, other).reshape(60, 9), RESAMPLING).p_value < 0.05
    assert 6 <= errors <= 36


def test_interval_by_hand():
    """One win and one loss: resampled means are 0, 1/2, 1 with 1/4, 1/2, 1/4.

    The 10 % and 90 % quantiles are therefore 0 and 1, the 30 % and 70 % quantiles both 1/2.
    """
    values = np.array([1.0, 0.0])
    assert bootstrap_interval(values, Resampling(5000, 0.8, 1)) == Interval(0.0, 1.0)
    assert bootstrap_interval(values, Resampling(5000, 0.4, 1)) == Interval(0.5, 0.5)


def test_interval_has_the_width_of_the_normal_approximation_on_many_prompts():
    """700 wins of 1000: standard error sqrt(.7 * .3 / 1000) = 0.01449, so 0.7 -+ 1.96 * 0.01449."""
    values = np.repeat([1.0, 0.0], [700, 300])
    interval = bootstrap_interval(values, Resampling(20000, 0.95, 3))
    assert interval.low == pytest.approx(0.6716, abs=2e-3)
    assert interval.high == pytest.approx(0.7284, abs=2e-3)


@given(paired_scores)
def test_swapping_the_sides_mirrors_the_win_rate_around_one_half(scores):
    policy, reference = scores
    there, back = win_rate(policy, reference, RESAMPLING), win_rate(reference, policy, RESAMPLING)
    assert there.rate + back.rate == pytest.approx(1.0)
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert there.p_value == back.p_value


def test_swapping_the_sides_mirrors_the_interval():
    random = np.random.default_rng(0)
    policy, reference = random.normal(0.5, 1, 200), random.normal(0, 1, 200)
    many = Resampling(20000, 0.95, 5)
    there = win_rate(policy, reference, many).interval
    back = win_rate(reference, policy, many).interval
    one_prompt = 1 / 200
    assert abs(there.low + back.high - 1) <= one_prompt
    assert abs(there.high + back.low - 1) <= one_prompt


@given(paired_scores, st.randoms(use_true_random=False))
def test_the_order_of_the_prompts_changes_nothing(scores, random):
    policy, reference = scores
    order = list(range(policy.size))
    random.shuffle(order)
    assert win_rate(policy[order], reference[order], RESAMPLING) == win_rate(policy, reference, RESAMPLING)


@given(paired_scores)
def test_the_rate_lies_in_its_interval_and_the_interval_in_the_unit_range(scores):
    result = win_rate(*scores, RESAMPLING)
    assert 0 <= result.interval.low <= result.interval.high <= 1
    # resampled means are symmetric enough around the rate for 95 % to contain it, whatever the counts
    assert result.interval.low <= result.rate <= result.interval.high


def test_all_ties_are_exactly_one_half():
    scores = np.array([0.3, -1.0, 2.0])
    assert win_rate(scores, scores, RESAMPLING) == WinRate(
        rate=0.5,
        interval=Interval(0.5, 0.5),
        p_value=1.0,
        adjusted_p=1.0,
        prompts=3,
        wins=0,
        ties=3,
        losses=0,
        left_out=0,
    )


def test_only_the_order_of_scores_matters():
    policy, reference = np.array([0.1, 0.9, -2.0]), np.array([0.0, 1.0, -3.0])
    assert win_rate(policy, reference, RESAMPLING) == win_rate(np.exp(policy), np.exp(reference), RESAMPLING)


def test_the_seed_decides_the_interval():
    policy, reference = np.random.default_rng(0).normal(size=(2, 97))
    again = [win_rate(policy, reference, Resampling(50, 0.9, seed)).interval for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_more_confidence_gives_a_wider_interval():
    policy, reference = np.random.default_rng(0).normal(size=(2, 150))
    narrow, wide = (win_rate(policy, reference, Resampling(4000, c, 1)).interval for c in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """400 experiments of 150 prompts with P(win) = .5, P(tie) = .2: the true rate is 0.6.

    The number of misses is Binomial(400, 0.05): 20 with standard deviation 4.4; a percentile interval is
    a little narrow. 6 to 36 misses is the range that a right interval leaves less than once in a thousand.
    """
    random = np.random.default_rng(11)
    misses = 0
    for seed in range(400):
        values = random.choice([1.0, 0.5, 0.0], p=[0.5, 0.2, 0.3], size=150)
        interval = bootstrap_interval(values, Resampling(1000, 0.95, seed))
        misses += not interval.low <= 0.6 <= interval.high
    assert 6 <= misses <= 36


def test_three_wins_of_three_settle_nothing():
    """The bootstrap interval has no width there, but the test (p = 1/4) is not significant."""
    result = win_rate(np.ones(3), np.zeros(3), RESAMPLING)
    assert result.interval == Interval(1.0, 1.0)
    assert not result.settled(0.95)


def test_a_clear_majority_is_settled_in_both_directions():
    better = win_rate(np.repeat([1.0, -1.0], [80, 20]), np.zeros(100), RESAMPLING)
    worse = win_rate(np.repeat([1.0, -1.0], [20, 80]), np.zeros(100), RESAMPLING)
    even = win_rate(np.repeat([1.0, -1.0], [52, 48]), np.zeros(100), RESAMPLING)
    assert better.settled(0.95)
    assert worse.settled(0.95)
    assert not even.settled(0.95)


def test_rows_are_brought_into_the_order_of_the_reference():
    ids = ["c", "a", "b"]
    order = same_order(ids, ["a", "b", "c"])
    assert [ids[i] for i in order] == ["a", "b", "c"]


def test_different_prompts_are_an_error_that_names_them():
    with pytest.raises(PromptMismatchError, match=r"1 missing \(first: 'b'\).*1 not known.*'x'"):
        same_order(["a", "x"], ["a", "b"])


def test_a_repeated_prompt_is_an_error_that_names_it():
    with pytest.raises(PromptMismatchError, match="'a' occurs more than once"):
        same_order(["a", "a"], ["a", "b"])


@pytest.mark.parametrize(
    ("scores", "reference_scores", "message"),
    [
        (np.ones((2, 1)), np.ones((3, 1)), "must be"),
        (np.ones(2), np.ones(2), "must be"),
        (np.ones((0, 1)), np.ones((0, 1)), "no prompt"),
        (np.array([[np.nan]]), np.ones((1, 1)), "finite"),
        (np.ones((1, 1)), np.array([[np.inf]]), "finite"),
    ],
)
def test_what_cannot_be_compared_is_an_error(scores, reference_scores, message):
    with pytest.raises(ValueError, match=message):
        outcomes(scores, reference_scores)


def test_outcomes_of_a_judge_that_reads_both_answers_are_counted():
    """Two wins, a tie and a loss: (2 + 0.5 + 0) / 4 = 0.625."""
    result = rate_of(np.array([[1], [1], [0.5], [0]]), RESAMPLING)
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.rate == pytest.approx(0.625)
    with pytest.raises(ValueError, match="no prompt"):
        rate_of(np.empty((0, 1)), RESAMPLING)


def test_holm_by_hand():
    """Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1: 0.04, 0.06, 0.06 (0.06 again, as it may not fall), 0.5."""
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx((0.5, 0.04, 0.06, 0.06))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([0.2]) == (0.2,)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= min(1.0, len(p_values) * p) + 1e-12 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


def test_holm_errs_in_a_family_as_rarely_as_promised():
    """400 families of 5 true null hypotheses: some p below 0.05 in 22.6 % of them, after correction in at most 5 %.

    Binomial(400, 0.05) exceeds 36 less than once in a thousand.
    """
    random = np.random.default_rng(2)
    families = random.uniform(size=(400, 5))
    assert sum(min(family) < 0.05 for family in families) > 60
    assert sum(min(holm(list(family))) < 0.05 for family in families) <= 36


def test_a_family_is_settled_by_its_corrected_tests():
    """33 of 50 has p = 0.033: significant alone, not as one of two (0.066)."""
    one = win_rate(np.repeat([1.0, -1.0], [33, 17]), np.zeros(50), RESAMPLING)
    other = win_rate(np.repeat([1.0, -1.0], [25, 25]), np.zeros(50), RESAMPLING)
    family = corrected({"one": one, "other": other})
    assert one.p_value == pytest.approx(0.0328, abs=1e-4)
    assert one.settled(0.95)
    assert family["one"].adjusted_p == 2 * one.p_value
    assert not family["one"].settled(0.95)
    assert family["other"].adjusted_p == 1.0


def test_a_mean_of_differences_is_a_paired_comparison():
    result = mean(np.array([1.0, 2.0, 3.0]), RESAMPLING)
    assert result.value == 2.0
    assert 1.0 <= result.interval.low < 2.0 < result.interval.high <= 3.0


def test_agreement_by_hand():
    """Alike on 4 of 5. Shares of win, tie, loss: 3/5, 1/5, 1/5 and 2/5, 1/5, 2/5.

    By chance (6 + 1 + 2) / 25 = 0.36, so kappa = (0.8 - 0.36) / (1 - 0.36) = 0.6875.
    """
    result = agreement(np.array([1, 1, 1, 0.5, 0]), np.array([1, 1, 0, 0.5, 0]))
    assert (result.share, result.pairs) == (0.8, 5)
    assert result.kappa == pytest.approx(0.6875)


def test_independent_judges_have_no_kappa_and_equal_ones_have_one():
    """25 prompts for each combination of win and loss: the judges agree on half, as by chance."""
    first, second = np.repeat([1.0, 0.0], 50), np.tile([1.0, 0.0], 50)
    assert agreement(first, second).kappa == pytest.approx(0.0)
    assert agreement(first, first).kappa == 1.0
    assert agreement(first, 1 - first).kappa == -1.0


def test_judges_that_always_say_the_same_one_thing_have_no_kappa():
    result = agreement(np.ones(4), np.ones(4))
    assert (result.share, result.kappa) == (1.0, None)
    with pytest.raises(ValueError, match="aligned"):
        agreement(np.ones(2), np.ones(3))


def test_pairs_that_do_not_count_are_left_out_and_prompts_without_one_are_counted():
    """Prompts: 1, 0 of two pairs; 1 of one; none. Means 1/2 and 1, so the rate is 3/4 over two prompts."""
    nan = np.nan
    result = rate_of(np.array([[1.0, 0], [1, nan], [nan, nan]]), RESAMPLING)
    assert (result.rate, result.prompts, result.left_out) == (0.75, 2, 1)
    assert (result.wins, result.ties, result.losses) == (1, 1, 0)
    with pytest.raises(ValueError, match="no prompt"):
        rate_of(np.full((2, 2), nan), RESAMPLING)


def test_prompts_with_different_numbers_of_pairs_are_tested_by_their_means():
    """Balances 1 (of one pair), 1/3 (two of three) and -1/2 (one of four): in units of 1/12

    12, 4 and -6. Sum 10; of the eight signed sums -+22, -+14, -+10, -+2 six are at least 10 apart from 0.
    """
    nan = np.nan
    each = np.array([[1.0, nan, nan, nan], [1, 1, 0, nan], [0, 0, 0, 1]])
    assert rate_of(each, RESAMPLING).p_value == pytest.approx(6 / 8)
    assert rate_of(each, RESAMPLING).rate == pytest.approx((1 + 2 / 3 + 1 / 4) / 3)


def test_many_different_numbers_of_pairs_are_rounded_and_stay_symmetric():
    """Numbers of pairs 1 to 17 have a least common multiple of 12 252 240: the balances are rounded to 1 / 5040."""
    random = np.random.default_rng(8)
    each = np.array([[*random.integers(0, 2, n), *[np.nan] * (17 - n)] for n in range(1, 18)])
    there, back = rate_of(each, RESAMPLING), rate_of(1 - each, RESAMPLING)
    assert there.p_value == back.p_value
    assert 0 < there.p_value <= 1
