"""Group-relative policy optimisation: no critic; a group of G answers to each prompt is its own baseline.

Â_i = (r_i − mean r) / (std r + ε)
L   = −min(ρ_t Â, clip(ρ_t, 1−ε_low, 1+ε_high) Â) + β·k3(π, π_ref)   (Shao et al. 2024, arXiv:2402.03300, Eq. 3, 4)

The KL is the always-positive estimator on the current log-probs, inside the loss. How tokens are weighted is the
``normalization``: ``grpo`` averages over the tokens of a response, then over responses; ``dapo`` over all tokens of
the batch (Yu et al. 2025, arXiv:2503.14476); ``dr_grpo`` divides by responses × the longest allowed length and does
not divide advantages by the deviation (Liu et al. 2025, arXiv:2503.20783). Log-ratios are clamped to ±20.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.advantages import group_relative
from alignflow.ops import kl_k1, kl_k3, masked_sum
from alignflow.types import Models, Sequences, StepOutput


@dataclass(frozen=True)
class GRPOConfig:
    """Keys of the update."""

    beta: float
    clip_range_low: float
    clip_range_high: float
    normalization: str
    std_epsilon: float


@dataclass(frozen=True)
class GRPOBatch:
    """Rollouts with everything that the update needs."""

    sequences: Sequences
    old_logprobs: Tensor
    """Zero outside the response. (B, S-1)"""
    ref_logprobs: Tensor
    """Zero outside the response. (B, S-1)"""
    advantages: Tensor
    """One a response. (B,)"""


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    *,
    beta: float,
    clip_range_low: float,
    clip_range_high: float,
) -> Tensor:
    """Return −min(ρ Â, clip(ρ) Â) + β·k3 of each token, not reduced and not weighted.

    Args:
        logprobs: log π at the sampling temperature. (B, T)
        old_logprobs: log π when the batch was sampled. (B, T)
        ref_logprobs: log π_ref. (B, T)
        advantages: Â of each response. (B,)
        beta: weight of the KL.
        clip_range_low: ρ is clipped below at 1 − this.
        clip_range_high: ρ is clipped above at 1 + this.

    Returns:
        (B, T)
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20.0, 20.0))
    unclipped = ratio * advantages[:, None]
    clipped = ratio.clamp(1.0 - clip_range_low, 1.0 + clip_range_high) * advantages[:, None]
    return -torch.minimum(unclipped, clipped) + beta * kl_k3(logprobs, ref_logprobs)


def prepare(
    sequences: Sequences, scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, config: GRPOConfig
) -> tuple[GRPOBatch, dict[str, Tensor]]:
    """Return the whole rollout batch ready for updates, and its metrics.

    Args:
        sequences: P·G rows, the G responses of a prompt side by side.
        scores: reward of each response. (P, G)
        logprobs: log π at sampling time, at the sampling temperature. (P·G, S-1)
        ref_logprobs: log π_ref of the same tokens. (P·G, S-1)
        config: keys of the update.
    """
    mask = sequences.response_mask[:, 1:]
    advantages = group_relative(scores, epsilon=config.std_epsilon, scale=config.normalization != "dr_grpo")
    metrics = {
        "kl/reference": masked_sum(kl_k1(logprobs, ref_logprobs), mask),
        "reward/mean": scores,
        "group_std": scores.std(1),
        "zero_variance_fraction": (scores.std(1) < config.std_epsilon).float(),
    }
    return GRPOBatch(sequences, logprobs, ref_logprobs, advantages.flatten()), metrics


def count(batch: GRPOBatch, config: GRPOConfig, *, max_response_length: int) -> float:
    """Return the share of the denominator that a micro-batch brings; see ``normalization``."""
    if config.normalization == "dapo":
        return float(batch.sequences.response_mask[:, 1:].sum())
    responses = len(batch.advantages)
    return float(responses * max_response_length if config.normalization == "dr_grpo" else responses)


def step(models: Models, batch: GRPOBatch, config: GRPOConfig, *, temperature: float) -> StepOutput:
    """Return the loss of each response token, weighted for its normalisation. (B, S-1)"""
    mask = batch.sequences.response_mask[:, 1:]
    logprobs, entropy = models.logprobs("policy", batch.sequences, temperature, entropy=True)
    assert entropy is not None
    losses = grpo_loss(
        logprobs,
        batch.old_logprobs,
        batch.ref_logprobs,
        batch.advantages,
        beta=config.beta,
        clip_range_low=config.clip_range_low,
        clip_range_high=config.clip_range_high,
    )
    if config.normalization == "grpo":
        losses = losses / mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = torch.exp(logprobs.detach() - batch.old_logprobs)
    outside = (ratio < 1.0 - config.clip_range_low) | (ratio > 1.0 + config.clip_range_high)
    return StepOutput(
        losses=losses,
        mask=mask,
        metrics={
            "entropy": entropy[mask],
            "kl/approx": kl_k3(batch.old_logprobs, logprobs.detach())[mask],
            "clip_fraction": outside.float()[mask],
        },
    )
