"""Kahneman-Tversky optimisation: learns from single responses with a thumb up or down; policy and reference only.

L = λ_y − v,  v = λ_D·σ(β·(r − z₀)) of a desirable response,  λ_U·σ(β·(z₀ − r)) of an undesirable one
r = log π(y|x) − log π_ref(y|x)          z₀ = max(0, mean of log π(y′|x) − log π_ref(y′|x)), y′ of another row

Ethayarajh et al. 2024, arXiv:2402.01306, section 4. Log-probs are sums over response tokens. Departures: z₀ is that
of the whole optimiser batch, of all processes, where the paper takes it of each micro-batch, so that micro-batches
change no result; and y′ is not the row's own text, nor another answer to its prompt, where the batch has others.
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
    """Rows with what the reference says of them, and the reference point of the optimiser batch they are part of."""

    sequences: Sequences
    ref_logps: Tensor
    """Summed response log-probs under the reference. (B,)"""
    desirable: Tensor
    """True for a thumb up. (B,) bool"""
    reference_point: Tensor
    """z₀, the same number for every row of the optimiser batch, so that rows can be cut into micro-batches. (B,)"""


def mismatched(rows: Sequence[Labelled]) -> list[Example]:
    """Return each row's prompt with the response of another row of the batch, in the order of the rows.

    Responses are rotated by one, (x_i, y_{i+1}), with equal responses side by side; or by the next number at which
    fewest rows keep the text of their own response, then fewest get another answer to their own prompt. So a row keeps
    its own text only where that is the text of more than half of the rows.

    Args:
        rows: of the whole optimiser batch, with thumbs up and down alike. B

    Returns:
        B pairs

    Raises:
        ValueError: there is one row, and so no other response.
    """
    if len(rows) == 1:
        raise ValueError("KTO needs at least two rows in a batch: each prompt is paired with another row's response")
    first = {row.response: place for place, row in reversed(list(enumerate(rows)))}
    order = sorted(range(len(rows)), key=lambda place: first[rows[place].response])

    def rotated(by: int) -> list[tuple[int, int]]:
        return list(zip(order, order[by:] + order[:by], strict=True))

    def kept(by: int) -> tuple[int, int]:
        texts = sum(rows[here].response == rows[other].response for here, other in rotated(by))
        return texts, sum(rows[here].prompt == rows[other].prompt for here, other in rotated(by))

    found = dict(rotated(min(range(1, len(rows)), key=kept, default=0)))
    return [Example(row.prompt, rows[found[place]].response) for place, row in enumerate(rows)]


def reference_point(mismatched_logps: Tensor, ref_mismatched_logps: Tensor) -> Tensor:
    """Return z₀ = max(0, mean of log π(y′|x) − log π_ref(y′|x)), a scalar without gradient.

    Stands for KL(π‖π_ref) in section 4 of Ethayarajh et al. 2024, arXiv:2402.01306; biased, since y′ is not sampled.

    Args:
        mismatched_logps: log π(y′|x) of all mismatched pairs of the optimiser batch, nats. (B,)
        ref_mismatched_logps: log π_ref(y′|x). (B,)
    """
    return (mismatched_logps - ref_mismatched_logps).detach().mean().clamp(min=0.0)


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
    """Return λ_y − v of each row, not reduced: λ_D·σ(−β·(r − z₀)) if desirable, λ_U·σ(β·(r − z₀)) if not.

    λ·(1 − σ(h)) is written as λ·σ(−h), which loses no digits where the policy is sure.

    Args:
        logps: log π(y|x), nats. (B,)
        ref_logps: log π_ref(y|x). (B,)
        desirable: True for a thumb up. (B,) bool
        reference_point: z₀, nats; held, whatever graph it comes with. A scalar or (B,)
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
    shown = logps.detach()
    rewards = config.beta * (shown - batch.ref_logps)
    return StepOutput(
        losses=losses,
        mask=torch.ones_like(losses, dtype=torch.bool),
        metrics={
            "rewards/chosen": rewards[batch.desirable],
            "rewards/rejected": rewards[~batch.desirable],
            "logps/chosen": shown[batch.desirable],
            "logps/rejected": shown[~batch.desirable],
            "kl/reference_point": batch.reference_point.detach(),
        },
    )


def build(models: Models, config: KTOConfig) -> OfflineAlgorithm[KTOBatch]:
    """Bind the algorithm to models with the role ``policy`` and to its settings."""
    return OfflineAlgorithm(
        step=lambda batch: step(models, batch, config), count=count, tokens=lambda batch: batch.sequences.tokens()
    )
