"""Group-relative policy optimisation: no critic; a group of G answers to each prompt is its own baseline.

Â_i = (r_i − mean r) / (std r + ε)
L   = −min(ρ_t Â, clip(ρ_t, 1−ε_low, 1+ε_high) Â) + β·k3(π, π_ref)   (Shao et al. 2024, arXiv:2402.03300, Eq. 3, 4)

The KL is the always-positive estimator on the current log-probs, inside the loss. How tokens are weighted is the
``normalization``: ``grpo`` averages over the tokens of a response, then over responses; ``dapo`` over all tokens of
the batch (Yu et al. 2025, arXiv:2503.14476, Eq. 12); ``dr_grpo`` divides by responses × the longest allowed length and
does not divide advantages by the deviation (Liu et al. 2025, arXiv:2503.20783, section 3.2). Log-ratios are clamped
to ±20. With ``importance_cap`` the policy term of each token, but not its KL term, is multiplied by its truncated
importance weight (``ops.importance_weights``).

Where a rollout batch gets a single update and every response counts, log π_old is the log π of that update itself, held
constant: ρ_t is 1, and its gradient that of log π. It then needs no extra forward pass.

Some responses may count for nothing: those without a score; by choice those cut off at the length limit (DAPO,
section 3.4), and those of groups whose scores are all alike, which the KL alone would move (DAPO, Eq. 11, samples
others instead). They leave the loss and its denominator.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.advantages import group_relative
from alignflow.ops import importance, kl_k1, kl_k3, masked_sum
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
class GRPOConfig:
    """Keys of the update."""

    beta: float
    clip_range_low: float
    clip_range_high: float
    group_size: int
    normalization: str
    std_epsilon: float
    zero_variance: str
    resample_limit: int
    mask_truncated: bool


@dataclass(frozen=True)
class GRPOBatch:
    """Rollouts with everything that the update needs."""

    sequences: Sequences
    old_logprobs: Tensor | None
    """Zero outside the response; None where the only update starts from the policy that sampled. (B, S-1)"""
    ref_logprobs: Tensor
    """Zero outside the response. (B, S-1)"""
    advantages: Tensor
    """One a response. (B,)"""
    sampled_logprobs: Tensor | None
    """The sampler's own log-probs; needed only for importance weights. (B, S-1)"""


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    *,
    beta: float,
    clip_range_low: float,
    clip_range_high: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Return −w·min(ρ Â, clip(ρ) Â) + β·k3 of each token, not reduced.

    Args:
        logprobs: log π at the sampling temperature. (B, T)
        old_logprobs: log π when the batch was sampled. (B, T)
        ref_logprobs: log π_ref. (B, T)
        advantages: Â of each response. (B,)
        beta: weight of the KL.
        clip_range_low: ρ is clipped below at 1 − this.
        clip_range_high: ρ is clipped above at 1 + this.
        weights: w, importance weights; ones if not given. (B, T)

    Returns:
        (B, T)
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20.0, 20.0))
    unclipped = ratio * advantages[:, None]
    clipped = ratio.clamp(1.0 - clip_range_low, 1.0 + clip_range_high) * advantages[:, None]
    gain = torch.minimum(unclipped, clipped)
    return -(gain if weights is None else weights * gain) + beta * kl_k3(logprobs, ref_logprobs)


def zero_variance(rollouts: Rollouts, config: GRPOConfig) -> Tensor:
    """Return which groups are (nearly) equal in score: deviation below ``std_epsilon``. (P,) bool"""
    return _advantages(rollouts, config)[1] < config.std_epsilon


def counting(rollouts: Rollouts, config: GRPOConfig) -> Tensor:
    """Return which responses train: those with a score that no setting drops or masks. (P·G,) bool"""
    counted = rollouts.scored
    if config.zero_variance != "keep":
        counted = counted & ~zero_variance(rollouts, config).repeat_interleave(config.group_size)
    return counted & ~rollouts.truncated if config.mask_truncated else counted


def prepare(
    rollouts: Rollouts, logprobs: Tensor | None, ref_logprobs: Tensor, config: GRPOConfig
) -> tuple[GRPOBatch, dict[str, Tensor]]:
    """Return the whole rollout batch ready for updates, and its metrics.

    Args:
        rollouts: P·G rows, the G responses of a prompt side by side.
        logprobs: log π before the first update, at the sampling temperature; None where there is to be only one update
            and every response counts: its ``step`` then also gives ``kl/reference``. (P·G, S-1)
        ref_logprobs: log π_ref of the same tokens. (P·G, S-1)
        config: keys of the update.
    """
    advantages, std = _advantages(rollouts, config)
    counted = counting(rollouts, config)
    metrics = {
        "reward/mean": rollouts.scores[rollouts.scored],
        "group_std": std,
        "zero_variance_fraction": zero_variance(rollouts, config).float(),
        "counted_fraction": counted.float(),
    }
    if logprobs is not None:
        metrics["kl/reference"] = _distances(logprobs, ref_logprobs, rollouts.sequences)
    batch = GRPOBatch(
        sequences=rollouts.sequences.counting(counted),
        old_logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        advantages=advantages.flatten(),
        sampled_logprobs=rollouts.sampled_logprobs,
    )
    return batch, metrics


def _distances(logprobs: Tensor, ref_logprobs: Tensor, sequences: Sequences) -> Tensor:
    return masked_sum(kl_k1(logprobs, ref_logprobs), sequences.response_mask[:, 1:])


def _advantages(rollouts: Rollouts, config: GRPOConfig) -> tuple[Tensor, Tensor]:
    return group_relative(
        rollouts.scores.view(-1, config.group_size),
        rollouts.scored.view(-1, config.group_size),
        epsilon=config.std_epsilon,
        scale=config.normalization != "dr_grpo",
    )


def count(batch: GRPOBatch, config: GRPOConfig, *, max_response_length: int) -> float:
    """Return the share of the denominator that a micro-batch brings; see ``normalization``."""
    mask = batch.sequences.response_mask[:, 1:]
    if config.normalization == "dapo":
        return float(mask.sum())
    responses = float(mask.any(1).sum())
    return responses * max_response_length if config.normalization == "dr_grpo" else responses


def step(
    models: Models,
    batch: GRPOBatch,
    config: GRPOConfig,
    *,
    temperature: float,
    importance_cap: float | None = None,
) -> StepOutput:
    """Return the loss of each response token, weighted for its normalisation.

    Args:
        models: with the role ``policy``.
        batch: a micro-batch.
        config: keys of the update.
        temperature: of sampling.
        importance_cap: largest importance weight of a token; None leaves all at 1.

    Returns:
        (B, S-1)
    """
    mask = batch.sequences.response_mask[:, 1:]
    logprobs, entropy = models.logprobs("policy", batch.sequences, temperature, entropy=True)
    assert entropy is not None
    current = logprobs.detach()
    old = current if batch.old_logprobs is None else batch.old_logprobs
    weights, weighed = importance(old, batch.sampled_logprobs, mask, cap=importance_cap)
    losses = grpo_loss(
        logprobs,
        old,
        batch.ref_logprobs,
        batch.advantages,
        beta=config.beta,
        clip_range_low=config.clip_range_low,
        clip_range_high=config.clip_range_high,
        weights=weights,
    )
    if config.normalization == "grpo":
        losses = losses / mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = torch.exp(current - old)
    outside = (ratio < 1.0 - config.clip_range_low) | (ratio > 1.0 + config.clip_range_high)
    metrics = {
        "entropy": entropy.detach()[mask],
        "kl/approx": kl_k3(old, current)[mask],
        "clip_fraction": outside.float()[mask],
        **weighed,
    }
    if batch.old_logprobs is None:
        metrics["kl/reference"] = _distances(current, batch.ref_logprobs, batch.sequences)
    return StepOutput(losses=losses, mask=mask, metrics=metrics)


def build(
    models: Models, passes: ForwardPasses, config: GRPOConfig, sampling: SamplingConfig
) -> OnlineAlgorithm[GRPOBatch]:
    """Bind the algorithm to models with the roles ``policy`` and ``reference``, and to its settings."""

    def prepared(rollouts: Rollouts, carry: Carry, both: bool) -> tuple[GRPOBatch, dict[str, Tensor], Carry]:
        # kl/reference is the mean over all responses, and the update sees only those that count
        if both or not counting(rollouts, config).all():
            return (*prepare(rollouts, *passes.policy_and_reference(rollouts.sequences), config), carry)
        return (*prepare(rollouts, None, passes.logprobs("reference", rollouts.sequences), config), carry)

    return OnlineAlgorithm(
        samples=config.group_size,
        prepare=prepared,
        steps=[
            lambda batch: step(
                models, batch, config, temperature=sampling.temperature, importance_cap=sampling.importance_cap
            )
        ],
        count=lambda batch: count(batch, config, max_response_length=sampling.max_response_length),
        start={},
        again=lambda rollouts: zero_variance(rollouts, config),
        limit=config.resample_limit if config.zero_variance == "resample" else 0,
    )
