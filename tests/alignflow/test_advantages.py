"""Generalised advantage estimation and group-relative advantages."""

import math

import pytest
import torch
from torch import Tensor

from alignflow.advantages import gae, group_relative
from tests import reference
from tests.close import EXACT, FLOAT64, LOOSE, close


def test_gae_by_hand():
    """gamma 1, lambda 1/2, rewards 0 0 1, values .5 .5 .5.

    deltas: .5-.5=0, 0, 1-.5=.5. Backwards: A3=.5, A2=0+.25, A1=0+.125; returns add .5 each.
    """
    advantages, returns = gae(
        torch.tensor([[0.0, 0, 1]]), torch.full((1, 3), 0.5), torch.ones(1, 3).bool(), gamma=1.0, gae_lambda=0.5
    )
    close(advantages, [[0.125, 0.25, 0.5]], EXACT)
    close(returns, [[0.625, 0.75, 1.0]], EXACT)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_sum_over_future_deltas(gamma: float, lam: float):
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 5, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 8, generator=generator) < 0.7
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    for row in range(5):
        expected = reference.gae(rewards[row].tolist(), values[row].tolist(), mask[row].tolist(), gamma, lam)
        close(advantages[row], expected[0], FLOAT64)
        close(returns[row], expected[1], FLOAT64)


@pytest.mark.parametrize("poison", [math.nan, 1e9])
def test_tokens_that_do_not_count_may_hold_anything(poison: float):
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 3, 6, generator=generator)
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0]]).bool()
    clean = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.9)
    dirty = gae(rewards.masked_fill(~mask, poison), values.masked_fill(~mask, poison), mask, gamma=0.9, gae_lambda=0.9)
    for a, b in zip(clean, dirty, strict=True):
        close(b, a, EXACT)


def test_lambda_one_and_gamma_one_give_the_return_to_go():
    """Then the return of a token is the plain sum of its and later rewards: 6, 5, 3."""
    _, returns = gae(
        torch.tensor([[1.0, 2, 3]]), torch.tensor([[9.0, -4, 2]]), torch.ones(1, 3).bool(), gamma=1.0, gae_lambda=1.0
    )
    close(returns, [[6.0, 5, 3]])


def relative(scores: Tensor, epsilon: float = 0.01, scale: bool = True) -> Tensor:
    return group_relative(scores, torch.ones_like(scores).bool(), epsilon=epsilon, scale=scale)[0]


def test_group_advantages_by_hand():
    """Scores 1, 2, 3: mean 2, unbiased deviation 1, epsilon 0.25, so -0.8, 0, 0.8; unscaled -1, 0, 1."""
    scores, mask = torch.tensor([[1.0, 2, 3]]), torch.ones(1, 3).bool()
    for scale, expected in ((True, [[-0.8, 0, 0.8]]), (False, [[-1.0, 0, 1]])):
        advantages, std = group_relative(scores, mask, epsilon=0.25, scale=scale)
        close(advantages, expected)
        close(std, [1.0])


@pytest.mark.parametrize("scale", [True, False])
def test_groups_equal_the_loop_one_by_one(scale: bool):
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = [reference.group_advantages(row, 0.01, scale) for row in scores.tolist()]
    close(relative(scores, scale=scale), expected, FLOAT64)


@pytest.mark.parametrize("scale", [True, False])
def test_a_constant_added_to_all_scores_changes_no_advantage(scale: bool):
    scores = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))
    close(relative(scores + 3.0, scale=scale), relative(scores, scale=scale))


def test_nearly_equal_scores_do_not_explode():
    """A spread of 1e-5 against epsilon 1e-2 stays below 2e-3; without epsilon it would be 0.7."""
    assert relative(torch.tensor([[0.5, 0.5 + 1e-5]])).abs().max() < 2e-3


def test_equal_scores_give_no_advantage():
    close(relative(torch.full((2, 3), 0.1)), torch.zeros(2, 3), LOOSE * 1e-3)


@pytest.mark.parametrize("scale", [True, False])
def test_responses_without_a_score_leave_the_group_and_have_no_advantage(scale: bool):
    """Scores 1, 3 and one without: as the group (1, 3); what the masked entry holds changes nothing."""
    mask = torch.tensor([[True, False, True]])
    for poison in (0.0, 1e9, math.nan):
        scores = torch.tensor([[1.0, poison, 3.0]], dtype=torch.float64)
        advantages, std = group_relative(scores, mask, epsilon=0.01, scale=scale)
        low, high = reference.group_advantages([1.0, 3.0], 0.01, scale)
        close(advantages, [[low, 0.0, high]], FLOAT64)
        close(std, [math.sqrt(2)], FLOAT64)


@pytest.mark.parametrize("scored", [[True, False, False], [False, False, False]])
def test_a_group_with_fewer_than_two_scores_has_no_advantage_and_no_nan(scored: list[bool]):
    advantages, std = group_relative(torch.tensor([[5.0, 1, 2]]), torch.tensor([scored]), epsilon=0.01, scale=True)
    close(advantages, torch.zeros(1, 3), EXACT)
    close(std, [0.0], EXACT)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match=r"^a group needs at least 2 responses$"):
        relative(torch.ones(3, 1))
