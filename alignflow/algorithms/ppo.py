"""Proximal policy optimisation with a critic and a KL penalty to the reference in the reward.

r_t = −kl_coef·(log π_old − log π_ref)(y_t) + [t = T]·score          (Ziegler et al. 2019, arXiv:1909.08593)
L   = −min(ρ_t Â_t, clip(ρ_t, 1−ε, 1+ε) Â_t) + c_v·½·max((V_t − R_t)², (V_t^clip − R_t)²)
                                                                    (Schulman et al. 2017, arXiv:1707.06347, Eq. 7, 9)
Departures: no entropy bonus; the critic has its own adapter over the shared base, so the two terms share no
trained weight; advantages are whitened over the whole rollout batch; the loss is a mean over all response tokens
of the optimiser batch; log-ratios are clamped to ±20 before exp.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.advantages import gae
from alignflow.ops import kl_k1, kl_k3, masked_sum, whiten
from alignflow.types import Models, Sequences, StepOutput


@dataclass(frozen=True)
class PPOConfig:
    """Keys of the update."""

    kl_coef: float
    clip_range: float
    value_clip_range: float
    value_coef: float
    gamma: float
    gae_lambda: float


@dataclass(frozen=True)
class PPOBatch:
    """Rollouts with everything that the update needs; every (B, S-1) tensor is zero outside the response."""

    sequences: Sequences
    old_logprobs: Tensor
    ref_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def token_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float) -> Tensor:
    """Return the reward of each token: minus the KL penalty, plus the score on the last response token.

    Args:
        scores: reward of the whole response. (B,)
        logprobs: log π_old of each token at the sampling temperature. (B, T)
        ref_logprobs: log π_ref of the same. (B, T)
        mask: True at response tokens. (B, T)
        kl_coef: weight of the penalty.

    Returns:
        Zero where the mask is False. (B, T)
    """
    rewards = torch.where(mask, -kl_coef * kl_k1(logprobs, ref_logprobs), 0.0)
    position = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, position, -1).max(-1, keepdim=True).values
    return torch.where(mask & (position == last), rewards + scores[:, None], rewards)


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """Return −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) of each token, not reduced. (B, T) each"""
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20.0, 20.0))
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    return -torch.minimum(unclipped, clipped)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, value_clip_range: float) -> Tensor:
    """Return ½·max((V − R)², (V_clip − R)²) of each token, V_clip within ±range of the old value. (B, T) each"""
    clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def prepare(
    sequences: Sequences,
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    values: Tensor,
    config: PPOConfig,
) -> tuple[PPOBatch, dict[str, Tensor]]:
    """Return the whole rollout batch ready for updates, advantages whitened over all its tokens, and metrics.

    Args:
        sequences: prompts with sampled responses. B rows
        scores: reward of each response. (B,)
        logprobs: log π at sampling time, at the sampling temperature. (B, S-1)
        ref_logprobs: log π_ref of the same tokens. (B, S-1)
        values: critic's value before each token. (B, S-1)
        config: keys of the update.
    """
    mask = sequences.response_mask[:, 1:]
    rewards = token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=config.kl_coef)
    advantages, returns = gae(rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
    residual = (returns - values)[mask]
    variance = returns[mask].var(correction=0).clamp(min=1e-8)
    metrics = {
        "kl/reference": masked_sum(kl_k1(logprobs, ref_logprobs), mask),
        "reward/mean": masked_sum(rewards, mask),
        "explained_variance": 1.0 - residual.var(correction=0) / variance,
    }
    batch = PPOBatch(sequences, logprobs, ref_logprobs, values, whiten(advantages, mask), returns)
    return batch, metrics


def count(batch: PPOBatch) -> float:
    """Return the response tokens of a micro-batch: the share of the denominator it brings."""
    return float(batch.sequences.response_mask[:, 1:].sum())


def policy_step(models: Models, batch: PPOBatch, config: PPOConfig, *, temperature: float) -> StepOutput:
    """Return the clipped surrogate loss of each response token. (B, S-1)"""
    mask = batch.sequences.response_mask[:, 1:]
    logprobs, entropy = models.logprobs("policy", batch.sequences, temperature, entropy=True)
    assert entropy is not None
    losses = policy_loss(logprobs, batch.old_logprobs, batch.advantages, clip_range=config.clip_range)
    ratio = torch.exp(logprobs.detach() - batch.old_logprobs)
    return StepOutput(
        losses=losses,
        mask=mask,
        metrics={
            "policy_loss": losses.detach()[mask],
            "entropy": entropy[mask],
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
