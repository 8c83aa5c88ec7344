"""PPO: token rewards, clipped losses, preparation and the two steps."""

import math

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.ppo import (
    PPOBatch,
    PPOConfig,
    count,
    critic_step,
    policy_loss,
    policy_step,
    prepare,
    token_rewards,
    value_loss,
)
from tests import reference
from tests.close import EXACT, FLOAT64, close
from tests.toy import Given, random_like, rows

CONFIG = PPOConfig(kl_coef=0.1, clip_range=0.2, value_clip_range=0.3, value_coef=0.5, gamma=0.9, gae_lambda=0.8)
BATCH = rows([(2, 3), (5, 1), (1, 6), (3, 2)])
MASK = BATCH.response_mask[:, 1:]


def draw(seed: int, scale: float = 0.3) -> Tensor:
    return random_like(BATCH, seed, scale)


def test_the_score_falls_on_the_last_response_token_and_the_penalty_on_all():
    """Three tokens, the last is padding; log-ratios 1 and -2, kl_coef 0.5, score 10: -0.5, 1 + 10, 0."""
    rewards = token_rewards(
        torch.tensor([10.0]),
        torch.tensor([[1.0, -2, math.nan]]),
        torch.zeros(1, 3),
        torch.tensor([[True, True, False]]),
        kl_coef=0.5,
    )
    close(rewards, [[-0.5, 11.0, 0.0]], EXACT)


def test_token_rewards_equal_the_loop():
    scores = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64)
    mine, ref = draw(1), draw(2)
    expected = [
        reference.token_rewards(s, a, b, m, 0.1)
        for s, a, b, m in zip(scores.tolist(), mine.tolist(), ref.tolist(), MASK.tolist(), strict=True)
    ]
    close(token_rewards(scores, mine, ref, MASK, kl_coef=0.1), expected, FLOAT64)


def test_policy_loss_by_hand():
    """Clip range 0.2. Ratio 2: A=1 clips to 1.2, A=-1 does not (-2). Ratio 1/2: A=1 stays, A=-1 clips to -0.8."""
    old = torch.zeros(1, 4)
    new = torch.tensor([[math.log(2), math.log(2), -math.log(2), -math.log(2)]])
    close(policy_loss(new, old, torch.tensor([[1.0, -1, 1, -1]]), clip_range=0.2), [[-1.2, 2.0, -0.5, 0.8]])


def test_value_loss_by_hand():
    """Old 0, range 0.3. V 1, R 1: clipped to 0.3, so 0.7^2 / 2. V 1, R 0: the unclipped 1 / 2 is larger."""
    zero = torch.zeros(1, 2)
    close(value_loss(torch.ones(1, 2), zero, torch.tensor([[1.0, 0]]), value_clip_range=0.3), [[0.245, 0.5]])


def test_losses_equal_the_loops():
    new, old, advantages = draw(3), draw(4), draw(5, 2.0)
    expected = [
        [reference.surrogate(p, o, a, 0.2, 0.2) for p, o, a in zip(*row, strict=True)]
        for row in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True)
    ]
    close(policy_loss(new, old, advantages, clip_range=0.2), expected, FLOAT64)
    expected = [
        [reference.value(v, o, r, 0.3) for v, o, r in zip(*row, strict=True)]
        for row in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True)
    ]
    close(value_loss(new, old, advantages, value_clip_range=0.3), expected, FLOAT64)


def test_losses_pass_gradcheck():
    new, old, other = (draw(s, 1.0).requires_grad_(s == 6) for s in (6, 7, 8))
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, other, clip_range=0.2), (new,))
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, other, value_clip_range=0.2), (new,))


def prepared(poison: float = 0.0) -> tuple[PPOBatch, dict[str, Tensor]]:
    scores = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64)
    return prepare(BATCH, scores, *(draw(s).masked_fill(~MASK, poison) for s in (1, 2, 3)), CONFIG)


def test_preparation_equals_rewards_gae_and_whitening_in_loops():
    batch, metrics = prepared()
    logprobs, ref, values, masks = (x.tolist() for x in (draw(1), draw(2), draw(3), MASK))
    rewards = [
        reference.token_rewards(s, a, b, m, 0.1)
        for s, a, b, m in zip([1.0, -2, 0.5, 3], logprobs, ref, masks, strict=True)
    ]
    estimates = [reference.gae(r, v, m, 0.9, 0.8) for r, v, m in zip(rewards, values, masks, strict=True)]
    close(batch.returns, [e[1] for e in estimates], FLOAT64)
    close(batch.advantages, reference.whiten([e[0] for e in estimates], masks), 1e-6)
    close(metrics["reward/mean"], [sum(r) for r in rewards], FLOAT64)
    close(metrics["kl/reference"], [sum(a) - sum(b) for a, b in zip(logprobs, ref, strict=True)], FLOAT64)
    errors, targets = [], []
    for (_, returns), row, mask in zip(estimates, values, masks, strict=True):
        errors += [r - v for r, v, m in zip(returns, row, mask, strict=True) if m]
        targets += [r for r, m in zip(returns, mask, strict=True) if m]
    explained = 1 - _variance(errors) / _variance(targets)
    close(metrics["explained_variance"], explained, FLOAT64)


def _variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values)


@pytest.mark.parametrize("poison", [math.nan, 1e9])
def test_padding_may_hold_anything_in_the_preparation(poison: float):
    clean, dirty = prepared()[0], prepared(poison)[0]
    close(dirty.advantages, clean.advantages, EXACT)
    close(dirty.returns, clean.returns, EXACT)


def test_the_first_update_has_ratio_one():
    """Then the loss is minus the mean advantage, which whitening makes 0; no clip, no KL."""
    batch, _ = prepared()
    output = policy_step(Given(batch.old_logprobs), batch, CONFIG, temperature=0.7)
    close(output.losses[MASK], -batch.advantages[MASK], EXACT)
    assert output.metrics["clip_fraction"].eq(0).all()
    assert output.metrics["kl/approx"].eq(0).all()
    close(output.losses[MASK].sum() / count(batch), 0.0)


def test_steps_mask_and_weigh_their_tokens():
    batch, _ = prepared()
    models = Given(batch.old_logprobs + draw(9), values=draw(10))
    policy, critic = policy_step(models, batch, CONFIG, temperature=0.7), critic_step(models, batch, CONFIG)
    assert models.temperatures == [0.7]
    assert policy.mask.equal(MASK)
    assert critic.mask.equal(MASK)
    expected = [
        0.5 * reference.value(v, o, r, 0.3)
        for v, o, r in zip(draw(10)[MASK].tolist(), draw(3)[MASK].tolist(), batch.returns[MASK].tolist(), strict=True)
    ]
    close(critic.losses[MASK], expected, FLOAT64)
    changes = draw(9)[MASK].tolist()
    outside = [float(abs(math.exp(d) - 1) > 0.2) for d in changes]
    close(policy.metrics["clip_fraction"], outside, EXACT)
    close(policy.metrics["kl/approx"], [math.exp(d) - d - 1 for d in changes], 1e-6)
    assert count(batch) == 12


def test_an_immediate_end_gives_no_nan():
    """Each response is one token: one reward, one advantage, no future."""
    batch = rows([(3, 1), (2, 1)])
    zeros = torch.zeros(2, 3)
    found, metrics = prepare(batch, torch.tensor([1.0, -1.0]), zeros, zeros, zeros, CONFIG)
    assert found.advantages.isfinite().all()
    assert all(m.isfinite().all() for m in metrics.values())
    close(found.returns.sum(1), [1.0, -1.0])


def test_permuting_the_rows_permutes_the_result():
    order = torch.tensor([2, 0, 3, 1])
    batch, _ = prepared()
    turned = type(BATCH)(*(x[order] for x in (BATCH.input_ids, BATCH.attention_mask, BATCH.response_mask)))
    scores = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64)[order]
    again, _ = prepare(turned, scores, *(draw(s)[order] for s in (1, 2, 3)), CONFIG)
    close(again.advantages, batch.advantages[order], FLOAT64)
