"""Win rates at equal length: hand values, invariants, coverage."""

from math import log

import numpy as np
import pytest

from alignflow.evaluation.length_control import length_controlled
from alignflow.evaluation.win_rates import Rate, Resampling

RESAMPLING = Resampling(samples=400, confidence=0.95, seed=7)
FREE = 1e-9  # a ridge that changes nothing


def controlled(each, extra, ridge: float, resampling: Resampling) -> Rate:
    """Take one pair of answers to each prompt, or several."""
    return length_controlled(each.reshape(len(each), -1), extra.reshape(len(extra), -1), ridge, resampling)


def groups(*parts: tuple[float, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes and length differences of groups of (difference, wins, losses)."""
    each = np.concatenate([np.repeat([1.0, 0.0], [wins, losses]) for _, wins, losses in parts])
    return each, np.concatenate([np.full(wins + losses, float(d)) for d, wins, losses in parts])


def test_two_lengths_by_hand():
    """20 longer answers by 5 tokens with 18 wins, 20 shorter by 5 with 10.

    Two groups fix the line: log-odds log 9 at +5 and 0 at -5, so (log 9) / 2 = log 3 at 0, a rate of 3/4.
    """
    result = controlled(*groups((5, 18, 2), (-5, 10, 10)), FREE, RESAMPLING)
    assert result.rate == pytest.approx(0.75, abs=1e-6)
    assert result.interval.low < 0.75 < result.interval.high


def test_a_win_that_is_nothing_but_length_disappears():
    """Longer answers win 3 of 4, shorter ones 1 of 4; twice as many are longer, so the raw rate is 7/12."""
    each, extra = groups((8, 6, 2), (-8, 1, 3))
    assert each.mean() == pytest.approx(7 / 12)
    assert controlled(each, extra, FREE, RESAMPLING).rate == pytest.approx(0.5, abs=1e-6)


def test_without_a_difference_in_length_it_is_the_win_rate():
    """7 wins, 2 ties and 1 loss: (7 + 1) / 10."""
    each = np.repeat([1.0, 0.5, 0.0], [7, 2, 1])
    assert controlled(each, np.zeros(10), FREE, RESAMPLING).rate == pytest.approx(0.8, abs=1e-6)


def test_length_that_has_no_say_changes_nothing():
    """Longer and shorter alike win 3 of 4."""
    assert controlled(*groups((4, 6, 2), (-4, 3, 1)), FREE, RESAMPLING).rate == pytest.approx(0.75, abs=1e-6)


def test_wins_alone_stay_finite_and_solve_the_ridge_by_hand():
    """Four wins, no difference: the gradient 4 (1 - p) - 0.1 log(p / (1 - p)) is 0 at the rate p."""
    p = controlled(np.ones(4), np.zeros(4), 0.1, RESAMPLING).rate
    assert 0.9 < p < 1
    assert 4 * (1 - p) == pytest.approx(0.1 * log(p / (1 - p)), abs=1e-6)


def test_outcomes_that_length_separates_perfectly_settle_nothing():
    result = controlled(*groups((30, 12, 0), (-30, 0, 12)), 0.1, RESAMPLING)
    assert result.rate == pytest.approx(0.5, abs=1e-6)
    assert result.interval.low <= 0.5 <= result.interval.high


def test_answers_that_are_all_longer_tell_nothing_about_equal_length():
    """No resample of ten wins by longer answers has a loss, yet an effect of length alone explains them all."""
    result = controlled(np.ones(10), np.full(10, 40.0), 0.1, RESAMPLING)
    assert result.interval.low < 0.5 < result.rate < 1
    assert controlled(np.ones(1), np.array([40.0]), 0.1, RESAMPLING).interval.low < 0.5
    many = np.repeat([1.0, 0.0], [700, 300])
    assert controlled(many, np.full(1000, 40.0), 0.1, RESAMPLING).interval.low < 0.5


def test_uneven_groups_that_length_separates_settle_nothing_either():
    assert controlled(*groups((20, 30, 0), (-20, 0, 10)), 0.1, RESAMPLING).interval.low < 0.5


def test_the_interval_has_the_width_of_the_normal_approximation_on_many_prompts():
    """700 wins of 1000 at equal length: 0.7 -+ 1.96 * sqrt(.7 * .3 / 1000)."""
    each = np.repeat([1.0, 0.0], [700, 300])
    interval = controlled(each, np.zeros(1000), FREE, RESAMPLING).interval
    assert (interval.low, interval.high) == pytest.approx((0.6716, 0.7284), abs=4e-3)


def test_swapping_the_sides_mirrors_it_around_one_half():
    random = np.random.default_rng(3)
    each, extra = random.choice([1.0, 0.5, 0.0], size=80), random.normal(3, 10, 80)
    there, back = (controlled(*pair, 0.1, RESAMPLING) for pair in ((each, extra), (1 - each, -extra)))
    assert there.rate + back.rate == pytest.approx(1)


def test_neither_the_unit_of_length_nor_the_order_of_prompts_matters():
    random = np.random.default_rng(4)
    each, extra = random.choice([1.0, 0.0], size=60), random.integers(-9, 9, 60).astype(float)
    order = random.permutation(60)
    once = controlled(each, extra, 0.1, RESAMPLING)
    assert controlled(each[order], extra[order], 0.1, RESAMPLING) == once
    assert controlled(each, 10 * extra, 0.1, RESAMPLING).rate == pytest.approx(once.rate)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """120 experiments of 120 prompts, log-odds 0.6 at equal length, 1.5 more for longer, tanh(1) of it at a time.

    The rate at equal length is 1 / (1 + e^-0.6) = 0.6457. Misses are Binomial(120, 0.05): mean 6, deviation 2.4.
    """
    random = np.random.default_rng(5)
    misses = 0
    for seed in range(120):
        extra = random.choice([-10.0, 10.0], p=[0.3, 0.7], size=120)
        odds = 0.6 + 1.5 * np.tanh(extra / 10)
        each = (random.uniform(size=120) < 1 / (1 + np.exp(-odds))).astype(float)
        interval = controlled(each, extra, 0.01, Resampling(300, 0.95, seed)).interval
        misses += not interval.low <= 0.6457 <= interval.high
    assert misses <= 15


def test_pairs_of_a_prompt_count_by_their_own_lengths_and_share_its_weight():
    """20 prompts of two pairs: 5 tokens longer, 18 won, and 5 shorter, 10 won. Two groups fix the line as above: 3/4.

    By the mean length of a prompt's pairs every difference would be 0 and the rate 28/40.
    """
    won = np.stack((np.repeat([1.0, 0.0], [18, 2]), np.repeat([1.0, 0.0], [10, 10])), axis=1)
    extra = np.tile([5.0, -5.0], (20, 1))
    assert controlled(won, extra, FREE, RESAMPLING).rate == pytest.approx(0.75, abs=1e-6)
    order = np.random.default_rng(1).permutation(20)
    assert controlled(won[order][:, ::-1], extra[:, ::-1], 0.1, RESAMPLING) == controlled(won, extra, 0.1, RESAMPLING)


def test_a_pair_that_does_not_count_changes_nothing():
    each, extra = groups((5, 18, 2), (-5, 10, 10))
    beside = np.stack((each, np.full(40, np.nan)), axis=1), np.stack((extra, np.full(40, 99.0)), axis=1)
    assert controlled(*beside, 0.1, RESAMPLING) == controlled(each, extra, 0.1, RESAMPLING)


def test_its_test_is_that_of_the_normal_approximation_on_many_prompts():
    """530 wins of 1000: log(53/47) = 0.1201 over 1 / sqrt(1000 * .53 * .47): z = 1.896."""
    each = np.repeat([1.0, 0.0], [530, 470])
    result = controlled(each, np.zeros(1000), FREE, Resampling(4000, 0.95, 7))
    assert result.p_value == pytest.approx(0.058, abs=0.004)
    assert not result.settled(0.95)
    assert result.prompts == 1000


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="aligned"):
        length_controlled(np.ones((2, 1)), np.ones((3, 1)), 0.1, RESAMPLING)
    with pytest.raises(ValueError, match="aligned"):
        length_controlled(np.ones((0, 1)), np.ones((0, 1)), 0.1, RESAMPLING)
