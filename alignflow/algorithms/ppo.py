"""Proximal policy optimisation with a critic and a KL penalty to the reference in the reward.

r_t = −kl_coef·KL̂(π_old, π_ref)(y_t) + [t = T]·score                 (Ziegler et al. 2019, arXiv:1909.08593)
L   = −min(ρ_t Â_t, clip(ρ_t, 1−ε, 1+ε) Â_t) − c_H·H_t + c_v·½·max((V_t − R_t)², (V_t^clip − R_t)²)
                                                                    (Schulman et al. 2017, arXiv:1707.06347, Eq. 7, 9)
The clipped value loss is not in the paper but in its authors' code (Huang et al. 2022, "The 37 implementation details
of proximal policy optimization"). Departures: the critic has its own adapter over the shared base, so policy and value
terms share no trained weight; advantages are whitened over the whole rollout batch; the loss is a mean over all
response tokens of the optimiser batch; log-ratios are clamped to ±20 before exp. With ``importance_cap`` a token's
policy term is multiplied by its truncated importance weight (``ops.importance_weights``), by way of the advantage,
which is the same because the weight is positive.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.advantages import gae
from alignflow.ops import KL_ESTIMATORS, importance, kl_k1, kl_k3, masked_sum, whiten
from alignflow.types import (
    Carry,
    ForwardPasses,
    Models,
    OnlineAlgorithm,
    Rollouts,
    SamplingConfig,
    Sequences,
    StepOutput,
)


@dataclass(frozen=True)
class PPOConfig:
    """Keys of the update."""

    kl_coef: float
    kl_estimator: str
    kl_target: float | None
    kl_gain: float
    reward_clip: float | None
    whiten_rewards: bool
    clip_range: float
    value_clip_range: float | None
    value_coef: float
    entropy_coef: float
    gamma: float
    gae_lambda: float


@dataclass(frozen=True)
class PPOBatch:
    """Rollouts with everything that the update needs; every (B, S-1) tensor is zero outside the response."""

    sequences: Sequences
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float, kl_estimator: str
) -> Tensor:
    """Return the reward of each token: minus the KL penalty, plus the score on the last response token.

    Args:
        scores: reward of the whole response. (B,)
        logprobs: log π_old of each token at the sampling temperature. (B, T)
        ref_logprobs: log π_ref of the same. (B, T)
        mask: True at response tokens. (B, T)
        kl_coef: weight of the penalty.
        kl_estimator: ``k1`` (with it the optimum is π_ref·exp(score/kl_coef)/Z) or ``k3`` (never a bonus).

    Returns:
        Zero where the mask is False. (B, T)
    """
    rewards = torch.where(mask, -kl_coef * KL_ESTIMATORS[kl_estimator](logprobs, ref_logprobs), 0.0)
    position = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, position, -1).max(-1, keepdim=True).values
    return torch.where(position == last, rewards + scores[:, None], rewards)


def clipped_scores(rollouts: Rollouts, reward_clip: float) -> Tensor:
    """Return clip(score, ±c) − penalty: the clip is of what the sources of reward gave, so a missing end always costs.

    Args:
        rollouts: whose ``scores`` have the penalty in them.
        reward_clip: c.

    Returns:
        (B,)
    """
    penalties = 0.0 if rollouts.penalties is None else rollouts.penalties
    return (rollouts.scores + penalties).clamp(-reward_clip, reward_clip) - penalties


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, gain: float) -> float:
    """Return the next coefficient: kl_coef·(1 + K·clip((kl − target)/target, −0.2, 0.2)).

    Ziegler et al. 2019, arXiv:1909.08593, section 2.2.

    Args:
        kl_coef: the present coefficient.
        kl: mean KL to the reference of the present rollout batch, nats a response.
        target: KL to hold, nats a response.
        gain: K; the paper takes 0.1.
    """
    return kl_coef * (1.0 + gain * min(0.2, max(-0.2, (kl - target) / target)))


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """Return −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) of each token, not reduced. (B, T) each"""
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20.0, 20.0))
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    return -torch.minimum(unclipped, clipped)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, value_clip_range: float | None) -> Tensor:
    """Return ½·max((V − R)², (V_clip − R)²) of each token, V_clip within ±range of the old value. (B, T) each

    Without a range it is ½·(V − R)².
    """
    squares = (values - returns).square()
    if value_clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
        squares = torch.maximum(squares, (clipped - returns).square())
    return 0.5 * squares


def prepare(
    rollouts: Rollouts,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    config: PPOConfig,
    *,
    kl_coef: float,
    importance_cap: float | None = None,
) -> tuple[PPOBatch, dict[str, Tensor], float]:
    """Return the whole rollout batch ready for updates, its metrics, and the next batch's ``kl_coef``.

    Advantages are whitened over all tokens of the batch. Responses without a score count for nothing.

    Args:
        rollouts: prompts with sampled responses and their scores. B rows
        logprobs: log π at sampling time, at the sampling temperature. (B, S-1)
        ref_logprobs: log π_ref of the same tokens. (B, S-1)
        values: critic's value before each token. (B, S-1)
        config: keys of the update.
        kl_coef: weight of the KL penalty, which adaptive KL may have changed from ``config.kl_coef``.
        importance_cap: largest importance weight of a token; None leaves all at 1.
    """
    sequences = rollouts.sequences.counting(rollouts.scored)
    mask = sequences.response_mask[:, 1:]
    rewards = token_rewards(
        rollouts.scores if config.reward_clip is None else clipped_scores(rollouts, config.reward_clip),
        logprobs,
        ref_logprobs,
        mask,
        kl_coef=kl_coef,
        kl_estimator=config.kl_estimator,
    )
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, keep_mean=True)
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
    weights, weighed = importance(logprobs, rollouts.sampled_logprobs, mask, cap=importance_cap)
    kl = masked_sum(kl_k1(logprobs, ref_logprobs), rollouts.sequences.response_mask[:, 1:])
    metrics = {
        "kl/reference": kl,
        "kl_coef": torch.tensor(kl_coef),
        "reward/mean": masked_sum(rewards, mask)[rollouts.scored],
        "counted_fraction": rollouts.scored.float(),
        "explained_variance": _explained(values[mask], returns[mask]),
        **weighed,
    }
    batch = PPOBatch(sequences, logprobs, values, weights * whiten(advantages, mask), returns)
    if config.kl_target is None:
        return batch, metrics, kl_coef
    return batch, metrics, adapted_kl_coef(kl_coef, float(kl.mean()), target=config.kl_target, gain=config.kl_gain)


def _explained(values: Tensor, returns: Tensor) -> Tensor:
    if not len(returns):
        return returns
    return 1.0 - (returns - values).var(correction=0) / returns.var(correction=0).clamp(min=1e-8)


def count(batch: PPOBatch) -> float:
    """Return the response tokens of a micro-batch: the share of the denominator it brings."""
    return float(batch.sequences.response_mask[:, 1:].sum())


def policy_step(models: Models, batch: PPOBatch, config: PPOConfig, *, temperature: float) -> StepOutput:
    """Return the clipped surrogate loss of each response token, less the entropy bonus. (B, S-1)"""
    mask = batch.sequences.response_mask[:, 1:]
    logprobs, entropy = models.logprobs("policy", batch.sequences, temperature, entropy=True)
    assert entropy is not None
    losses = policy_loss(logprobs, batch.old_logprobs, batch.advantages, clip_range=config.clip_range)
    ratio = torch.exp(logprobs.detach() - batch.old_logprobs)
    return StepOutput(
        losses=losses - config.entropy_coef * entropy if config.entropy_coef else losses,
        mask=mask,
        metrics={
            "policy_loss": losses.detach()[mask],
            "entropy": entropy.detach()[mask],
            "kl/approx": kl_k3(batch.old_logprobs, logprobs.detach())[mask],
            "clip_fraction": ((ratio - 1.0).abs() > config.clip_range).float()[mask],
        },
    )


def critic_step(models: Models, batch: PPOBatch, config: PPOConfig) -> StepOutput:
    """Return the weighted clipped value loss of each response token. (B, S-1)"""
    mask = batch.sequences.response_mask[:, 1:]
    values = models.values("critic", batch.sequences)
    losses = value_loss(values, batch.old_values, batch.returns, value_clip_range=config.value_clip_range)
    return StepOutput(losses=config.value_coef * losses, mask=mask, metrics={"value_loss": losses.detach()[mask]})


def build(
    models: Models, passes: ForwardPasses, config: PPOConfig, sampling: SamplingConfig
) -> OnlineAlgorithm[PPOBatch]:
    """Bind the algorithm to models with the roles ``policy``, ``reference`` and ``critic``, and to its settings."""

    def prepared(rollouts: Rollouts, carry: Carry, _: bool) -> tuple[PPOBatch, dict[str, Tensor], Carry]:
        logprobs, ref_logprobs = passes.policy_and_reference(rollouts.sequences)
        batch, metrics, kl_coef = prepare(
            rollouts,
            logprobs,
            ref_logprobs,
            passes.values("critic", rollouts.sequences),
            config,
            kl_coef=carry["kl_coef"],
            importance_cap=sampling.importance_cap,
        )
        return batch, metrics, {"kl_coef": kl_coef}

    return OnlineAlgorithm(
        samples=1,
        prepare=prepared,
        steps=[
            lambda batch: policy_step(models, batch, config, temperature=sampling.temperature),
            lambda batch: critic_step(models, batch, config),
        ],
        count=count,
        start={"kl_coef": config.kl_coef},
    )
