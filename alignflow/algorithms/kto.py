"""Kahneman-Tversky optimisation: learns from single responses with a thumb up or down; policy and reference only.

L = λ_y − v,  v = λ_D·σ(β·(r − z₀)) of a desirable response,  λ_U·σ(β·(z₀ − r)) of an undesirable one
r = log π(y|x) − log π_ref(y|x)
z₀ = max(0, mean of log π(y′|x) − log π_ref(y′|x)), y′ the response of another row; without gradient

Ethayarajh et al. 2024, arXiv:2402.01306, section 4. Log-probs are sums over response tokens. Departures: z₀ is that of
the whole optimiser batch, of all processes, where the paper takes it of each micro-batch, so that micro-batches change
no result; and the rotation that mismatches rows avoids pairs that are rows of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alignflow.ops import masked_sum
from alignflow.types import Example, Models, OfflineAlgorithm, Sequences, StepOutput


@dataclass(frozen=True)
class KTOConfig:
    """Keys of the loss."""

    beta: float
    desirable_weight: float
    undesirable_weight: float


class Labelled(NamedTuple):
    """One prompt with one response and its thumb, as token ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    desirable: bool
    """True for a thumb up."""


@dataclass(frozen=True)
class KTOBatch:
    """Rows with what the reference says of them, and the reference point of the optimiser batch that they belong to."""

    sequences: Sequences
    ref_logps: Tensor
    """Summed response log-probs under the reference. (B,)"""
    desirable: Tensor
    """True for a thumb up. (B,) bool"""
    reference_point: Tensor
    """z₀ of the optimiser batch: the same number in every row, so that rows can be cut into micro-batches. (B,)"""


def mismatched(rows: Sequence[Labelled]) -> list[Example]:
    """Return each row's prompt with the response of another row, in the order of the rows.

    Responses are rotated: row i gets that of row i + k. k is the least number at which fewest of the pairs are rows of
    the batch themselves, as happens where rows share a prompt or a response; it is 1 where no rows do.

    Args:
        rows: the whole optimiser batch, thumbs up and down together. B

    Returns:
        B pairs

    Raises:
        ValueError: a batch of one row has no other response.
    """
    if len(rows) < 2:
        raise ValueError("KTO needs at least two rows in a batch: each prompt is paired with another row's response")
    known = {(row.prompt, row.response) for row in rows}

    def rotated(k: int) -> list[Example]:
        return [Example(row.prompt, other.response) for row, other in zip(rows, [*rows[k:], *rows[:k]], strict=True)]

    return min(map(rotated, range(1, len(rows))), key=lambda pairs: sum(pair in known for pair in pairs))


def reference_point(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Return z₀ = max(0, mean of log π(y′|x) − log π_ref(y′|x)), a scalar without gradient.

    Stands for KL(π‖π_ref) in section 4 of Ethayarajh et al. 2024, arXiv:2402.01306. It is biased, since y′ is not
    sampled from π.

    Args:
        logps: log π(y′|x) of all mismatched pairs of the optimiser batch, nats. (B,)
        ref_logps: log π_ref(y′|x). (B,)
    """
    return (logps - ref_logps).detach().mean().clamp(min=0.0)


def kto_loss(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """Return λ_y − v of each row, not reduced.

    λ_D − λ_D·σ(h) = λ_D·σ(−h) of a desirable row, λ_U − λ_U·σ(−h) = λ_U·σ(h) of an undesirable one, h = β·(r − z₀):
    without the difference, no digits are lost where the policy is sure.

    Args:
        logps: log π(y|x), nats. (B,)
        ref_logps: log π_ref(y|x). (B,)
        desirable: True for a thumb up. (B,) bool
        reference_point: z₀, nats, held constant. (B,)
        beta: β.
        desirable_weight: λ_D.
        undesirable_weight: λ_U.

    Returns:
        Between 0 and λ_y. (B,)
    """
    h = beta * (logps - ref_logps - reference_point.detach())
    return torch.where(desirable, desirable_weight * torch.sigmoid(-h), undesirable_weight * torch.sigmoid(h))


def count(batch: KTOBatch) -> float:
    """Return the rows of a micro-batch: the share of the denominator it brings."""
    return float(len(batch.ref_logps))


def step(models: Models, batch: KTOBatch, config: KTOConfig) -> StepOutput:
    """Return the loss of each row. (B,)"""
    logprobs, _ = models.logprobs("policy", batch.sequences)
    logps = masked_sum(logprobs, batch.sequences.response_mask[:, 1:])
    losses = kto_loss(
        logps,
        batch.ref_logps,
        batch.desirable,
        batch.reference_point,
        beta=config.beta,
        desirable_weight=config.desirable_weight,
        undesirable_weight=config.undesirable_weight,
    )
    logps = logps.detach()
    rewards = config.beta * (logps - batch.ref_logps)
    return StepOutput(
        losses=losses,
        mask=torch.ones_like(losses, dtype=torch.bool),
        metrics={
            "rewards/chosen": rewards[batch.desirable],
            "rewards/rejected": rewards[~batch.desirable],
            "logps/chosen": logps[batch.desirable],
            "logps/rejected": logps[~batch.desirable],
            "kl/reference_point": batch.reference_point,
        },
    )


def build(models: Models, config: KTOConfig) -> OfflineAlgorithm[KTOBatch]:
    """Bind the algorithm to models with the role ``policy`` and to its settings."""
    return OfflineAlgorithm(
        step=lambda batch: step(models, batch, config), count=count, tokens=lambda batch: batch.sequences.tokens()
    )
