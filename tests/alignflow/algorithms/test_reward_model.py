"""The reward model's loss and its step."""

import math

import pytest
import torch

from alignflow.algorithms.reward_model import (
    RewardBatch,
    RewardModelConfig,
    StatesBatch,
    count,
    cut_rejected,
    head_step,
    reward_loss,
    step,
)
from alignflow.types import Pair
from tests import reference
from tests.close import EXACT, FLOAT64, close
from tests.toy import Given, plain_numbers, rows


def pairs() -> torch.Tensor:
    return torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def test_loss_by_hand():
    """Scores 2 and -1: log(1 + e^-3) plus 0.5 times (2 - 1)^2; a margin of 1 asks for e^-2."""
    w, r = torch.tensor([2.0]).double(), torch.tensor([-1.0]).double()
    close(reward_loss(w, r, torch.zeros(1), center_coef=0.5), [math.log1p(math.exp(-3)) + 0.5], FLOAT64)
    close(reward_loss(w, r, torch.ones(1), center_coef=0.5), [math.log1p(math.exp(-2)) + 0.5], FLOAT64)


@pytest.mark.parametrize("center", [0.0, 0.01, 1.0])
def test_loss_equals_the_loop(center: float):
    chosen, rejected = pairs()
    margins = chosen.abs()
    expected = reference.reward(chosen.tolist(), rejected.tolist(), margins.tolist(), center)
    close(reward_loss(chosen, rejected, margins, center_coef=center), expected, FLOAT64)


def test_equal_scores_give_log_two_and_a_shift_changes_nothing_without_centring():
    chosen, rejected = pairs()
    none = torch.zeros(7)
    close(reward_loss(chosen, chosen, none, center_coef=0.0), [math.log(2)] * 7, FLOAT64)
    shifted = reward_loss(chosen + 5, rejected + 5, none, center_coef=0.0)
    close(shifted, reward_loss(chosen, rejected, none, center_coef=0.0), FLOAT64)


def test_loss_passes_gradcheck():
    chosen, rejected = pairs()
    assert torch.autograd.gradcheck(
        lambda a, b: reward_loss(a, b, torch.full((7,), 0.5), center_coef=0.1),
        (chosen.requires_grad_(), rejected.requires_grad_()),
    )


def test_a_step_takes_chosen_rows_first():
    """Two pairs: 3 against 1 is right, 0 against 2 is wrong; margins 2 and -2."""
    batch = RewardBatch(rows([(1, 2), (1, 3), (1, 2), (1, 1)]), torch.zeros(2))
    output = step(Given(scores=torch.tensor([3.0, 0, 1, 2])), batch, RewardModelConfig(0.0, 1.0))
    close(output.losses, [math.log1p(math.exp(-2)), math.log1p(math.exp(2))])
    close(output.metrics["rewards/accuracy"], [1.0, 0.0], EXACT)
    close(output.metrics["rewards/margin"], [2.0, -2.0], EXACT)
    assert count(batch) == 2


def test_margins_of_the_data_are_weighed_by_their_coefficient():
    """Margins 4 and 0 at coefficient 1/2: h = 2 - 2 = 0 and -2 - 0 = -2."""
    batch = RewardBatch(rows([(1, 2), (1, 3), (1, 2), (1, 1)]), torch.tensor([4.0, 0.0]))
    output = step(Given(scores=torch.tensor([3.0, 0, 1, 2])), batch, RewardModelConfig(0.0, 0.5))
    close(output.losses, [math.log(2), math.log1p(math.exp(2))])


def test_only_long_rejected_responses_are_cut_and_the_rest_of_a_pair_stays():
    pair = Pair((1, 2), (3, 4, 5, 6, 9), (7, 7, 7, 7, 9))
    short = Pair((1, 2), (3, 9), (7, 9))
    assert cut_rejected([pair, short], limit=3, fraction=1.0, seed=0) == [Pair((1, 2), pair.chosen, (7, 7, 7)), short]
    assert cut_rejected([pair, short], limit=3, fraction=0.0, seed=0) == [pair, short]


def test_the_share_of_cut_responses_is_the_asked_one_and_repeats():
    """Of 1000 fair draws, 500 ± 3·√250 ≈ 500 ± 48."""
    pairs = [Pair((1,), (2, 9), (i, i, 9)) for i in range(1000)]
    once = cut_rejected(pairs, limit=1, fraction=0.5, seed=3)
    assert 452 <= sum(len(p.rejected) == 1 for p in once) <= 548
    assert once == cut_rejected(pairs, limit=1, fraction=0.5, seed=3)


def test_without_a_limit_any_rejected_response_is_cut_anywhere():
    """3000 draws of 1, 2 or 3 of 4 tokens: 1000 ± 4·√667 ≈ 1000 ± 103 each; one token alone has no place to cut."""
    pairs = [Pair((1,), (2, 9), (5, 6, 7, 9)) for _ in range(3000)]
    found = [pair.rejected for pair in cut_rejected(pairs, limit=None, fraction=1.0, seed=3)]
    assert set(found) == {(5,), (5, 6), (5, 6, 7)}
    assert all(897 <= found.count(each) <= 1103 for each in set(found))
    short = Pair((1,), (2, 9), (9,))
    assert cut_rejected([short], limit=None, fraction=1.0, seed=3) == [short]
    assert cut_rejected(pairs, limit=None, fraction=0.0, seed=3) == pairs


def test_a_step_centres_the_scores_and_not_the_margins():
    """One pair, scores 3 and 1, margin 1.5: log(1 + e^-0.5) plus 0.5 times (3 + 1)^2."""
    batch = RewardBatch(rows([(1, 2), (1, 3)]), torch.full((1,), 1.5))
    output = step(Given(scores=torch.tensor([3.0, 1.0])), batch, RewardModelConfig(0.5, 1.0))
    close(output.losses, [math.log1p(math.exp(-0.5)) + 8.0])


def test_metrics_list_all_scores_call_a_tie_wrong_and_keep_no_graph():
    batch = RewardBatch(rows([(1, 2), (1, 3), (1, 2), (1, 1)]), torch.zeros(2))
    scores = torch.tensor([3.0, 2, 1, 2], requires_grad=True)
    output = step(Given(scores=scores), batch, RewardModelConfig(0.0, 1.0))
    close(output.metrics["rewards/accuracy"], [1.0, 0.0], EXACT)
    close(output.metrics["score/mean"], [3.0, 2.0, 1.0, 2.0], EXACT)
    assert output.losses.requires_grad
    plain_numbers(output.metrics)


def test_a_head_step_scores_the_states_and_leaves_them_alone():
    """Head (2, −1): states (3, 1) and (0, 2) score 5 and −2, (1, 1) twice scores 1; margin 4 at coefficient 1/2."""
    head = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, -1.0]]))
    chosen = torch.tensor([[3.0, 1.0], [1.0, 1.0]], requires_grad=True)
    batch = StatesBatch(chosen, torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([4.0, 0.0]))
    output = head_step(head, batch, RewardModelConfig(0.1, 0.5))
    close(output.losses, [math.log1p(math.exp(-5)) + 0.9, math.log(2) + 0.4])
    close(output.metrics["score/mean"], [5.0, 1.0, -2.0, 1.0], EXACT)
    close(output.metrics["rewards/accuracy"], [1.0, 0.0], EXACT)
    assert output.mask.all()
    assert count(batch) == 2
    output.losses.sum().backward()
    assert head.weight.grad is not None
    plain_numbers(output.metrics)
