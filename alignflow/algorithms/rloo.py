"""REINFORCE leave-one-out: no critic; the mean reward of the other responses to a prompt is the baseline of each.

R_i = score_i − kl_coef·Σ_t KL̂(π_old, π_ref)(y_t)                (Ahmadian et al. 2024, arXiv:2402.14740, Eq. 3)
Â_i = R_i − Σ_{j≠i} R_j / (G−1)                                  (Kool et al. 2019; Ahmadian et al., section 2.3)
L   = −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â)

``level`` says what an action is. ``sequence`` is the paper's: the whole response is one action, with the ratio
ρ_i = π(y_i) / π_old(y_i), and the loss is a mean over responses. ``token``: each token is an action, with the ratio
ρ_t = π(y_t) / π_old(y_t); its rewards are those of PPO, −kl_coef·KL̂ at each token and the score at the last; its
advantage is what the response earns from this token on, less the same baseline:

Â_t = score_i − kl_coef·Σ_{s≥t} KL̂(y_s) − Σ_{j≠i} R_j / (G−1)

and the loss is a mean over tokens. The baseline of a response does not depend on it, so it adds no bias at either
level. The paper has no leave-one-out baseline for tokens: it finds that partial responses need no model of their own
(sections 3.3 and 5.1).

Departures. The paper's estimator Â·∇ log π has no ratio. Here the clipped surrogate of PPO corrects for the policy that
sampled, where a rollout batch serves several updates (Schulman et al. 2017, arXiv:1707.06347, Eq. 7); at the first
update ρ is 1 and both have the same gradient. The ratio of a response is a product over its tokens, so the same ε clips
it sooner than that of a token. The KL estimator may be k3; that of the paper is k1, and only k1 has the optimum
π_ref·exp(score/kl_coef)/Z. Log-ratios are clamped to ±20 before exp, that of a response after the sum. With
``importance_cap`` an action counts by its truncated importance weight (``ops.importance_weights``), which, positive,
stands in the advantage; that of a response is the product over its tokens, capped once.

Some responses count for nothing and leave the loss and its denominator: those without a score, which no baseline
contains, and by choice those cut off at the length limit, which stay in the baselines of the others. Where only one
response of a group has a score, it has no baseline: it counts with advantage 0, as do responses of equal rewards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignflow.ops import KL_ESTIMATORS, importance, kl_k1, kl_k3, masked_sum
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
class RLOOConfig:
    """Keys of the update."""

    kl_coef: float
    kl_estimator: str
    clip_range: float
    group_size: int
    level: str
    mask_truncated: bool


@dataclass(frozen=True)
class RLOOBatch:
    """Rollouts with everything that the update needs."""

    sequences: Sequences
    old_logprobs: Tensor
    """Of each token; zero outside the response. (B, S-1)"""
    advantages: Tensor
    """One an action. (B,) for ``sequence``, (B, S-1) for ``token``"""


def leave_one_out(rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the baseline of each response, Σ_{j≠i} R_j / (G−1), and who has one.

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024, section 2.3.

    Args:
        rewards: one row a prompt, one column a response. (P, G), G ≥ 2
        mask: True where a response has a score; the others have no baseline and are in none. (P, G)

    Returns:
        Baselines, and True where another response of the group has a score. (P, G) each

    Raises:
        ValueError: in a group of one there is no other response.
    """
    if rewards.shape[1] < 2:
        raise ValueError("a group needs at least 2 responses")
    known = torch.where(mask, rewards, 0.0)
    others = mask.sum(1, keepdim=True) - 1
    baselines = (known.sum(1, keepdim=True) - known) / others.clamp(min=1)
    return baselines, mask & (others >= 1)


def rewards_to_go(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """Return the rewards from each token to the end of its response: score − Σ_{s≥t} penalty_s.

    Args:
        scores: reward of the whole response, which comes with its last token. (B,)
        penalties: what each token costs. (B, T)
        mask: True at response tokens. (B, T)

    Returns:
        Zero where the mask is False. (B, T)
    """
    ahead = torch.where(mask, penalties, 0.0).flip(1).cumsum(1).flip(1)
    return torch.where(mask, scores[:, None] - ahead, 0.0)


def rloo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_range: float) -> Tensor:
    """Return −min(ρ Â, clip(ρ, 1−ε, 1+ε) Â) of each action, not reduced; all of the same shape.

    Args:
        logprobs: log π of each action: of a token, or of a response the sum over its tokens.
        old_logprobs: log π of the same when the batch was sampled.
        advantages: Â of the same.
        clip_range: ε.
    """
    ratio = torch.exp((logprobs - old_logprobs).clamp(-20.0, 20.0))
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    return -torch.minimum(unclipped, clipped)


def prepare(
    rollouts: Rollouts,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    config: RLOOConfig,
    *,
    importance_cap: float | None = None,
) -> tuple[RLOOBatch, dict[str, Tensor]]:
    """Return the whole rollout batch ready for updates, and its metrics.

    Args:
        rollouts: P·G rows, the G responses of a prompt side by side.
        logprobs: log π before the first update, at the sampling temperature. (P·G, S-1)
        ref_logprobs: log π_ref of the same tokens. (P·G, S-1)
        config: keys of the update.
        importance_cap: largest importance weight of an action; None leaves all at 1.
    """
    mask, scored = rollouts.sequences.response_mask[:, 1:], rollouts.scored
    penalties = config.kl_coef * KL_ESTIMATORS[config.kl_estimator](logprobs, ref_logprobs)
    rewards = rollouts.scores - masked_sum(penalties, mask)
    groups = (-1, config.group_size)
    baselines, paired = (x.flatten() for x in leave_one_out(rewards.view(groups), scored.view(groups)))
    if config.level == "token":
        baselines, paired = baselines[:, None], paired[:, None]
        rewards_left = rewards_to_go(rollouts.scores, penalties, mask)
    else:
        rewards_left = rewards
    counted = scored & ~rollouts.truncated if config.mask_truncated else scored
    sequences = rollouts.sequences.counting(counted)
    counts = _counted_actions(sequences, config)
    sampled = rollouts.sampled_logprobs
    weights, weighed = importance(
        _of_actions(logprobs, sequences, config),
        None if sampled is None else _of_actions(sampled, sequences, config),
        counts,
        cap=importance_cap,
    )
    advantages = torch.where(paired & counts, weights * (rewards_left - baselines), 0.0)
    metrics = {
        "reward/mean": rewards[scored],
        "kl/reference": masked_sum(kl_k1(logprobs, ref_logprobs), mask),
        "counted_fraction": counted.float(),
        **weighed,
    }
    return RLOOBatch(sequences, logprobs, advantages), metrics


def _of_actions(logprobs: Tensor, sequences: Sequences, config: RLOOConfig) -> Tensor:
    """Return the log-prob of each action from those of the tokens. (B, S-1) -> (B,) or (B, S-1)"""
    return masked_sum(logprobs, sequences.response_mask[:, 1:]) if config.level == "sequence" else logprobs


def _counted_actions(sequences: Sequences, config: RLOOConfig) -> Tensor:
    """Return which actions count. (B,) or (B, S-1)"""
    mask = sequences.response_mask[:, 1:]
    return mask.any(1) if config.level == "sequence" else mask


def count(batch: RLOOBatch, config: RLOOConfig) -> float:
    """Return the responses or tokens of a micro-batch: the share of the denominator that it brings."""
    return float(_counted_actions(batch.sequences, config).sum())


def step(models: Models, batch: RLOOBatch, config: RLOOConfig, *, temperature: float) -> StepOutput:
    """Return the clipped surrogate loss of each action.

    Args:
        models: with the role ``policy``.
        batch: a micro-batch.
        config: keys of the update.
        temperature: of sampling.

    Returns:
        (B,) for ``sequence``, (B, S-1) for ``token``
    """
    tokens = batch.sequences.response_mask[:, 1:]
    logprobs, entropy = models.logprobs("policy", batch.sequences, temperature, entropy=True)
    assert entropy is not None
    new, old = (_of_actions(x, batch.sequences, config) for x in (logprobs, batch.old_logprobs))
    mask = _counted_actions(batch.sequences, config)
    ratio = torch.exp(new.detach() - old)
    return StepOutput(
        losses=rloo_loss(new, old, batch.advantages, clip_range=config.clip_range),
        mask=mask,
        metrics={
            "entropy": entropy.detach()[tokens],
            "kl/approx": kl_k3(batch.old_logprobs, logprobs.detach())[tokens],
            "clip_fraction": ((ratio - 1.0).abs() > config.clip_range).float()[mask],
        },
    )


def build(
    models: Models, passes: ForwardPasses, config: RLOOConfig, sampling: SamplingConfig
) -> OnlineAlgorithm[RLOOBatch]:
    """Bind the algorithm to models with the roles ``policy`` and ``reference``, and to its settings."""

    def prepared(rollouts: Rollouts, carry: Carry, _: bool) -> tuple[RLOOBatch, dict[str, Tensor], Carry]:
        logprobs, ref_logprobs = passes.policy_and_reference(rollouts.sequences)
        return (*prepare(rollouts, logprobs, ref_logprobs, config, importance_cap=sampling.importance_cap), carry)

    return OnlineAlgorithm(
        samples=config.group_size,
        prepare=prepared,
        steps=[lambda batch: step(models, batch, config, temperature=sampling.temperature)],
        count=lambda batch: count(batch, config),
        start={},
    )
