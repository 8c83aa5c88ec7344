"""How often responses to the same prompt win against each other."""

import math

import pytest
import torch

from alignflow.advantages import group_relative
from alignflow.preferences import preferences, win_rates, win_shares
from tests import reference
from tests.close import EXACT, FLOAT64, close

SCORES = [1.0, 0.0, 0.5]
CYCLE = [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]  # rock, paper, scissors


def test_win_rates_by_hand():
    """(1/2 + s(1) + s(1/2)) / 3 = 0.617839, (s(-1) + 1/2 + s(-1/2)) / 3 = 0.382161, and 1/2 in the middle."""
    close(win_rates(preferences(SCORES, 1.0)), [0.617839, 0.382161, 0.5], 1e-6)


def test_win_shares_by_hand():
    """(s(1) + s(1/2)) / 2, without the half that a response wins against itself."""
    s = {x: 1 / (1 + math.exp(-x)) for x in (1.0, 0.5)}
    share = (s[1.0] + s[0.5]) / 2
    close(win_shares(preferences(SCORES, 1.0)), [share, 1 - share, 0.5], FLOAT64)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_both_equal_the_loops(temperature: float):
    scores = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()
    preferred = preferences(scores, temperature)
    close(win_rates(preferred), reference.wins(scores, temperature, itself=True), FLOAT64)
    close(win_shares(preferred), reference.wins(scores, temperature, itself=False), FLOAT64)


def test_without_a_temperature_the_order_alone_counts():
    assert win_rates(preferences([3.0, 1.0, 1.0], 0.0)) == [2.5 / 3, 1 / 3, 1 / 3]
    assert win_shares(preferences([3.0, 1.0, 1.0], 0.0)) == [1.0, 0.25, 0.25]


def test_rewards_far_apart_stay_finite():
    assert win_shares(preferences([1e6, -1e6], 1e-3)) == [1.0, 0.0]


def test_a_response_without_a_reward_meets_nobody():
    assert win_rates(preferences([None, 1.0, 1.0], 1.0)) == [None, 0.5, 0.5]
    assert win_shares(preferences([None, 1.0, 1.0], 1.0)) == [None, 0.5, 0.5]


def test_a_response_alone_has_no_share():
    assert win_shares(preferences([None, 1.0], 1.0)) == [None, None]
    assert win_shares(preferences([1.0], 1.0)) == [None]


def test_preferences_in_a_circle_give_equal_shares():
    """At the uniform policy nobody has an advantage, though every response beats one and loses to one."""
    assert win_shares(CYCLE) == [0.5, 0.5, 0.5]


def test_an_outlier_counts_no_more_than_a_win():
    """Without a temperature the shares of (0, 1, 2) and of (0, 1, 1000) are the same."""
    assert win_shares(preferences([0.0, 1.0, 2.0], 0.0)) == win_shares(preferences([0.0, 1.0, 1000.0], 0.0))


def test_at_a_high_temperature_the_advantages_are_those_of_the_rewards():
    """Shares are then linear in the rewards, and dividing by the deviation removes their scale."""
    scores = torch.randn(1, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    shares = torch.tensor([win_shares(preferences(scores[0].tolist(), 100.0))], dtype=torch.float64)
    everyone = torch.ones(1, 5, dtype=torch.bool)
    mine, plain = (group_relative(x, everyone, epsilon=1e-12, scale=True)[0] for x in (shares, scores))
    close(mine, plain, 1e-3)
    one = torch.tensor([win_shares(preferences(scores[0].tolist(), 0.1))], dtype=torch.float64)
    assert float((group_relative(one, everyone, epsilon=1e-12, scale=True)[0] - plain).abs().max()) > 0.1


def test_shares_of_a_group_are_one_half_on_average():
    shares = win_shares(preferences([0.3, -2.0, 5.0, 0.1], 0.7))
    close(sum(share or 0.0 for share in shares) / 4, 0.5, FLOAT64)
    close(preferences([1.0, 2.0], 0.5)[0][0], 0.5, EXACT)
