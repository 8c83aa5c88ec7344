"""Direct preference optimisation: policy and reference only.

L = −log σ(h),  h = β·[log π/π_ref(y_w|x) − log π/π_ref(y_l|x)]      (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7)

Variants of the same h: ``ipo`` (Azar et al. 2023, arXiv:2310.12036, Eq. 17) squares the distance of the log-ratio
difference to 1/(2β), ``hinge`` (Zhao et al. 2023, arXiv:2305.10425) is max(0, 1 − h). Label smoothing ε mixes in
the loss of the flipped label (cDPO). Log-probs are sums over response tokens; for IPO means, so that 1/(2β) does
not depend on length.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.ops import masked_sum
from alignflow.types import Models, Sequences, StepOutput


@dataclass(frozen=True)
class DPOConfig:
    """Keys of the loss."""

    beta: float
    loss: str
    label_smoothing: float


@dataclass(frozen=True)
class PairBatch:
    """All chosen rows, then all rejected rows, with what the reference says of them."""

    sequences: Sequences
    ref_logps: Tensor
    """Summed response log-probs under the reference. (2B,)"""


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    loss: str,
    label_smoothing: float,
) -> Tensor:
    """Return the loss of each pair, not reduced.

    Args:
        chosen_logps: log π(y_w|x), nats. (B,)
        rejected_logps: log π(y_l|x). (B,)
        ref_chosen_logps: log π_ref(y_w|x). (B,)
        ref_rejected_logps: log π_ref(y_l|x). (B,)
        beta: β.
        loss: ``sigmoid``, ``ipo`` or ``hinge``.
        label_smoothing: ε, the probability that a label is wrong.

    Returns:
        (B,)

    Raises:
        ValueError: the loss has another name.
    """
    logratios = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)

    def labelled(difference: Tensor) -> Tensor:
        if loss == "sigmoid":
            return -F.logsigmoid(beta * difference)
        if loss == "hinge":
            return torch.relu(1.0 - beta * difference)
        if loss == "ipo":
            return (difference - 1.0 / (2.0 * beta)).square()
        raise ValueError(f"dpo loss {loss!r} is not one of sigmoid, ipo, hinge")

    return (1.0 - label_smoothing) * labelled(logratios) + label_smoothing * labelled(-logratios)


def count(batch: PairBatch) -> float:
    """Return the pairs of a micro-batch: the share of the denominator it brings."""
    return len(batch.ref_logps) / 2


def step(models: Models, batch: PairBatch, config: DPOConfig) -> StepOutput:
    """Return the loss of each pair. (B,)"""
    mask = batch.sequences.response_mask[:, 1:]
    logprobs, _ = models.logprobs("policy", batch.sequences)
    logps, ref_logps = masked_sum(logprobs, mask), batch.ref_logps
    if config.loss == "ipo":
        lengths = mask.sum(-1)
        logps, ref_logps = logps / lengths, ref_logps / lengths
    chosen, rejected = logps.chunk(2)
    ref_chosen, ref_rejected = ref_logps.chunk(2)
    losses = dpo_loss(
        chosen,
        rejected,
        ref_chosen,
        ref_rejected,
        beta=config.beta,
        loss=config.loss,
        label_smoothing=config.label_smoothing,
    )
    chosen_rewards = config.beta * (chosen - ref_chosen).detach()
    rejected_rewards = config.beta * (rejected - ref_rejected).detach()
    return StepOutput(
        losses=losses,
        mask=torch.ones_like(losses, dtype=torch.bool),
        metrics={
            "rewards/accuracy": (chosen_rewards > rejected_rewards).float(),
            "rewards/margin": chosen_rewards - rejected_rewards,
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
        },
    )
