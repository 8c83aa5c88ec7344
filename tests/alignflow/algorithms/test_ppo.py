"""PPO: token rewards, clipped losses, preparation and the two steps."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.ppo import (
    PPOBatch,
    PPOConfig,
    adapted_kl_coef,
    count,
    critic_step,
    policy_loss,
    policy_step,
    prepare,
    token_rewards,
    value_loss,
)
from alignflow.data.collate import take_rows
from tests import reference
from tests.close import EXACT, FLOAT64, close
from tests.toy import Given, Uncertain, plain_numbers, random_like, rollouts, rows

CONFIG = PPOConfig(
    kl_coef=0.1,
    kl_estimator="k1",
    kl_target=None,
    kl_gain=0.1,
    reward_clip=None,
    whiten_rewards=False,
    clip_range=0.2,
    value_clip_range=0.3,
    value_coef=0.5,
    entropy_coef=0.0,
    gamma=0.9,
    gae_lambda=0.8,
)
SCORES = torch.tensor([1.0, -2, 0.5, 3], dtype=torch.float64)
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
        kl_estimator="k1",
    )
    close(rewards, [[-0.5, 11.0, 0.0]], EXACT)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_token_rewards_equal_the_loop(estimator: str):
    mine, ref = draw(1), draw(2)
    expected = [
        reference.token_rewards(s, a, b, m, 0.1, estimator)
        for s, a, b, m in zip(SCORES.tolist(), mine.tolist(), ref.tolist(), MASK.tolist(), strict=True)
    ]
    close(token_rewards(SCORES, mine, ref, MASK, kl_coef=0.1, kl_estimator=estimator), expected, FLOAT64)


def test_the_k3_penalty_never_rewards_a_token():
    mine, ref = draw(1, 2.0), draw(2, 2.0)
    zero = torch.zeros(4)
    assert token_rewards(zero, mine, ref, MASK, kl_coef=0.1, kl_estimator="k3").le(0).all()
    assert token_rewards(zero, mine, ref, MASK, kl_coef=0.1, kl_estimator="k1").gt(0).any()


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (-60.0, 0.98)])
def test_the_kl_coefficient_follows_the_target_by_at_most_a_fifth_of_the_gain(kl: float, factor: float):
    """Target 6, gain 0.1: an error of 10 % moves it by 1 %, and never more than 2 %."""
    close(adapted_kl_coef(0.3, kl, target=6.0, gain=0.1), 0.3 * factor, FLOAT64)


def test_policy_loss_by_hand():
    """Clip range 0.2. Ratio 2: A=1 clips to 1.2, A=-1 does not (-2). Ratio 1/2: A=1 stays, A=-1 clips to -0.8."""
    old = torch.zeros(1, 4)
    new = torch.tensor([[math.log(2), math.log(2), -math.log(2), -math.log(2)]])
    close(policy_loss(new, old, torch.tensor([[1.0, -1, 1, -1]]), clip_range=0.2), [[-1.2, 2.0, -0.5, 0.8]])


def test_value_loss_by_hand():
    """Old 0, range 0.3. V 1, R 1: clipped to 0.3, so 0.7^2 / 2. V 1, R 0: the unclipped 1 / 2 is larger."""
    zero = torch.zeros(1, 2)
    close(value_loss(torch.ones(1, 2), zero, torch.tensor([[1.0, 0]]), value_clip_range=0.3), [[0.245, 0.5]])
    close(value_loss(torch.ones(1, 2), zero, torch.tensor([[1.0, 0]]), value_clip_range=None), [[0.0, 0.5]])


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


def prepared(poison: float = 0.0, **changes: Any) -> tuple[PPOBatch, dict[str, Tensor]]:
    config = replace(CONFIG, **changes)
    columns = (draw(s).masked_fill(~MASK, poison) for s in (1, 2, 3))
    return prepare(rollouts(BATCH, SCORES), *columns, config, kl_coef=config.kl_coef)[:2]


def loop_rewards(scores: list[float]) -> list[list[float]]:
    columns = (scores, draw(1).tolist(), draw(2).tolist(), MASK.tolist())
    return [reference.token_rewards(s, a, b, m, 0.1) for s, a, b, m in zip(*columns, strict=True)]


def loop_returns(rewards: list[list[float]]) -> list[list[float]]:
    columns = (rewards, draw(3).tolist(), MASK.tolist())
    return [reference.gae(r, v, m, 0.9, 0.8)[1] for r, v, m in zip(*columns, strict=True)]


def test_scores_are_clipped_before_the_kl_penalty():
    """Clip 1: scores 1, -2, 0.5, 3 count as 1, -1, 0.5, 1."""
    batch, _ = prepared(reward_clip=1.0)
    close(batch.returns, loop_returns(loop_rewards([1.0, -1.0, 0.5, 1.0])), FLOAT64)


def test_the_penalty_of_a_missing_end_is_never_clipped_away():
    """Clip 1, penalty 1 of the first three: 3, -1, 0.5 and 3 before it, so 1 - 1, -1 - 1, 0.5 - 1 and 1."""
    given = replace(
        rollouts(BATCH, torch.tensor([2.0, -2, -0.5, 3], dtype=torch.float64)),
        penalties=torch.tensor([1.0, 1, 1, 0], dtype=torch.float64),
    )
    columns = [draw(s) for s in (1, 2, 3)]
    clipped, plain = (
        prepare(given, *columns, replace(CONFIG, reward_clip=clip), kl_coef=0.1)[0] for clip in (1.0, None)
    )
    close(clipped.returns, loop_returns(loop_rewards([0.0, -2.0, -0.5, 1.0])), FLOAT64)
    close(plain.returns, loop_returns(loop_rewards([2.0, -2.0, -0.5, 3.0])), FLOAT64)


def test_whitened_rewards_have_deviation_one_around_their_own_mean():
    batch, metrics = prepared(whiten_rewards=True)
    rewards = reference.whiten(loop_rewards(SCORES.tolist()), MASK.tolist(), keep_mean=True)
    close(batch.returns, loop_returns(rewards), 1e-6)
    close(metrics["reward/mean"], [sum(row) for row in rewards], 1e-6)


def test_the_controller_moves_the_next_coefficient_and_uses_the_present_one():
    """Mean KL against target 0.01: the clipped error is +0.2 or -0.2, gain 0.5, so 1.1 or 0.9 times."""
    columns = [draw(s) for s in (1, 2, 3)]
    config = replace(CONFIG, kl_target=0.01, kl_gain=0.5)
    batch, metrics, following = prepare(rollouts(BATCH, SCORES), *columns, config, kl_coef=0.1)
    sign = 1 if float(metrics["kl/reference"].mean()) > 0.01 else -1
    close(following, 0.1 * (1 + sign * 0.1), FLOAT64)
    close(metrics["kl_coef"], 0.1)
    close(batch.returns, prepared()[0].returns, EXACT)
    assert prepare(rollouts(BATCH, SCORES), *columns, CONFIG, kl_coef=0.7)[2] == 0.7


def test_responses_without_a_score_count_for_nothing():
    """The result is that of a rollout batch with the other rows only."""
    given = replace(rollouts(BATCH, SCORES), scored=torch.tensor([True, False, True, True]))
    given = replace(given, scores=SCORES.masked_fill(~given.scored, math.nan))
    columns = [draw(s) for s in (1, 2, 3)]
    batch, metrics, _ = prepare(given, *columns, CONFIG, kl_coef=0.1)
    kept = [0, 2, 3]
    others = rollouts(take_rows(BATCH, kept), SCORES[kept])
    alone, expected, _ = prepare(others, *(c[kept] for c in columns), CONFIG, kl_coef=0.1)
    close(batch.advantages[kept], alone.advantages, FLOAT64)
    close(batch.returns[kept], alone.returns, FLOAT64)
    assert not batch.sequences.response_mask[1].any()
    assert count(batch) == count(alone)
    for name in ("reward/mean", "explained_variance"):
        close(metrics[name], expected[name], FLOAT64)
    close(metrics["counted_fraction"], [1.0, 0.0, 1.0, 1.0], EXACT)


def test_a_batch_without_any_score_gives_no_nan_and_keeps_the_coefficient_moving_by_its_kl():
    given = replace(rollouts(BATCH, SCORES), scored=torch.zeros(4, dtype=torch.bool))
    config = replace(CONFIG, kl_target=1000.0)
    batch, metrics, following = prepare(given, *(draw(s) for s in (1, 2, 3)), config, kl_coef=0.1)
    assert all(value.isfinite().all() for value in metrics.values())
    close(batch.advantages, torch.zeros_like(batch.advantages), EXACT)
    close(following, 0.1 * 0.98, FLOAT64)


def test_the_entropy_bonus_is_taken_off_every_token():
    """``Given`` answers entropy 2 at every token."""
    batch, _ = prepared()
    plain, more = (
        policy_step(Given(draw(4)), batch, replace(CONFIG, entropy_coef=c), temperature=1.0) for c in (0.0, 0.25)
    )
    close(more.losses[MASK], plain.losses[MASK] - 0.5, FLOAT64)
    close(more.metrics["policy_loss"], plain.metrics["policy_loss"], EXACT)


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
    close(critic.metrics["value_loss"], [x / 0.5 for x in expected], FLOAT64)
    surrogates = [
        reference.surrogate(d, 0.0, a, 0.2, 0.2)
        for d, a in zip(draw(9)[MASK].tolist(), batch.advantages[MASK].tolist(), strict=True)
    ]
    close(policy.losses[MASK], surrogates, FLOAT64)
    close(policy.metrics["policy_loss"], surrogates, FLOAT64)
    close(policy.metrics["entropy"], [2.0] * 12, EXACT)
    changes = draw(9)[MASK].tolist()
    outside = [float(abs(math.exp(d) - 1) > 0.2) for d in changes]
    close(policy.metrics["clip_fraction"], outside, EXACT)
    close(policy.metrics["kl/approx"], [math.exp(d) - d - 1 for d in changes], 1e-6)
    assert count(batch) == 12


def test_an_immediate_end_gives_no_nan():
    """Each response is one token: one reward, one advantage, no future."""
    batch = rows([(3, 1), (2, 1)])
    zeros = torch.zeros(2, 3)
    found, metrics, _ = prepare(rollouts(batch, torch.tensor([1.0, -1.0])), zeros, zeros, zeros, CONFIG, kl_coef=0.1)
    assert found.advantages.isfinite().all()
    assert all(m.isfinite().all() for m in metrics.values())
    close(found.returns.sum(1), [1.0, -1.0])


def test_permuting_the_rows_permutes_the_result():
    order = torch.tensor([2, 0, 3, 1])
    batch, _ = prepared()
    turned = type(BATCH)(*(x[order] for x in (BATCH.input_ids, BATCH.attention_mask, BATCH.response_mask)))
    columns = (draw(s)[order] for s in (1, 2, 3))
    again, *_ = prepare(rollouts(turned, SCORES[order]), *columns, CONFIG, kl_coef=0.1)
    close(again.advantages, batch.advantages[order], FLOAT64)


def test_the_score_falls_on_a_response_of_one_token_at_the_first_place():
    mask = torch.tensor([[True, False, False]])
    zeros = torch.zeros(1, 3)
    rewards = token_rewards(torch.tensor([10.0]), zeros, zeros, mask, kl_coef=0.5, kl_estimator="k1")
    close(rewards, [[10.0, 0.0, 0.0]], EXACT)


def test_token_rewards_are_on_the_device_of_their_inputs():
    """The meta device computes nothing, but raises if devices are mixed."""
    columns, mask = torch.empty(2, 3, device="meta"), torch.empty(2, 3, dtype=torch.bool, device="meta")
    scores = torch.empty(2, device="meta")
    assert token_rewards(scores, columns, columns, mask, kl_coef=0.5, kl_estimator="k1").device.type == "meta"


def test_log_ratios_are_held_within_twenty():
    """Beyond, the ratio is e^20 (unclipped where A < 0) or e^-20 (unclipped where A > 0)."""
    new, old = torch.tensor([[30.0, -30.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    found = policy_loss(new, old, torch.tensor([[-1.0, 1.0]], dtype=torch.float64), clip_range=0.2)
    close(found[0, 0], math.exp(20), FLOAT64)
    close(found[0, 1] * 1e9, -math.exp(-20) * 1e9, FLOAT64)


def test_the_controller_looks_at_the_mean_kl_of_a_response():
    """A target one tenth below the mean KL: the error of 1/9 is inside the clip, so gain 0.5 adds 1/18."""
    columns = [draw(1), draw(1) - 0.1 * MASK.double(), draw(3)]  # 12 tokens in 4 responses: 0.3 nats a response
    config = replace(CONFIG, kl_target=0.27, kl_gain=0.5)
    following = prepare(rollouts(BATCH, SCORES), *columns, config, kl_coef=0.1)[2]
    close(following, 0.1 * (1 + 0.5 / 9), FLOAT64)


def test_a_batch_keeps_what_sampling_said_of_its_tokens():
    batch, _ = prepared()
    close(batch.old_logprobs, draw(1), EXACT)
    close(batch.old_values, draw(3), EXACT)


@pytest.mark.parametrize(("scores", "explained"), [([0.5, -0.5], 0.0), ([1.0, 1.0], 1.0)])
def test_explained_variance_of_a_critic_that_says_nothing(scores: list[float], explained: float):
    """Values 0: none of the returns' variance is explained; where they do not vary there is none to explain."""
    batch, zeros = rows([(3, 1), (2, 1)]), torch.zeros(2, 3)
    metrics = prepare(rollouts(batch, torch.tensor(scores)), zeros, zeros, zeros, CONFIG, kl_coef=0.1)[1]
    close(metrics["explained_variance"], explained)


def test_a_ratio_on_the_bound_is_not_clipped():
    """Ratio 1 with range 0."""
    batch, _ = prepared()
    metrics = policy_step(Given(batch.old_logprobs), batch, replace(CONFIG, clip_range=0.0), temperature=1.0).metrics
    close(metrics["clip_fraction"], [0.0] * 12, EXACT)


def test_metrics_keep_no_graph():
    batch, metrics = prepared()
    plain_numbers(metrics)
    new, values = (draw(s).requires_grad_() for s in (4, 5))
    for output in (
        policy_step(Uncertain(new), batch, CONFIG, temperature=1.0),
        critic_step(Given(values=values), batch, CONFIG),
    ):
        assert output.losses.requires_grad
        plain_numbers(output.metrics)


def test_importance_weights_scale_the_advantage_of_each_token():
    """The sampler gave the tokens half their probability in training, the last response's a hundredth: cut at 3."""
    shift = torch.tensor([[math.log(2)]] * 3 + [[math.log(100)]], dtype=torch.float64)
    given = replace(rollouts(BATCH, SCORES), sampled_logprobs=torch.where(MASK, draw(1) - shift, 0.0))
    columns = (draw(1), draw(2), draw(3), CONFIG)
    plain = prepare(given, *columns, kl_coef=0.1)[0]
    batch, metrics, _ = prepare(given, *columns, kl_coef=0.1, importance_cap=3.0)
    factors = torch.tensor([[2.0], [2.0], [2.0], [3.0]], dtype=torch.float64)
    close(batch.advantages, factors * plain.advantages, FLOAT64)
    close(batch.returns, plain.returns, EXACT)
    close(metrics["importance/clipped_fraction"].sum(), 2.0)
