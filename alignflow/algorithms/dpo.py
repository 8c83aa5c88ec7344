"""Direct preference optimisation: policy and reference only.

L = −log σ(h),  h = β·[log π/π_ref(y_w|x) − log π/π_ref(y_l|x)]      (Rafailov et al. 2023, arXiv:2305.18290, Eq. 7)

Variants of the same h: ``ipo`` (Azar et al. 2023, arXiv:2310.12036, Eq. 17) squares the distance of the log-ratio
difference to 1/(2β); ``hinge`` (Liu et al. 2023, arXiv:2309.06657) is max(0, 1 − h). Where a label is wrong with
probability ε, every loss mixes in that of the flipped label (for ``sigmoid`` this is cDPO: Mitchell 2023, "A note on
DPO with noisy preferences", Eq. 3), except ``robust`` (Chowdhury et al. 2024, arXiv:2403.00409, section 3.1), which
subtracts it so that the expectation over flips is the loss of the true labels. ``simpo`` (Meng et al. 2024,
arXiv:2405.14734, Eq. 6) needs no reference and has a margin γ. ``sppo`` (Wu et al. 2024, arXiv:2405.00675, Eq. 3.6)
moves each log-ratio, chosen and rejected on its own, to a target set by how often the response wins. Each may add α
times the chosen response's negative log-likelihood (Pang et al. 2024, arXiv:2404.19733, Eq. 1).

Log-probs are sums over response tokens; means for ``ipo``, so that 1/(2β) does not depend on length, for ``simpo``,
and for the likelihood term, which is thus per token of its own response.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.ops import masked_sum
from alignflow.types import Models, OfflineAlgorithm, Sequences, StepOutput


@dataclass(frozen=True)
class DPOConfig:
    """Keys of the loss."""

    beta: float
    loss: str
    label_smoothing: float
    simpo_margin: float
    nll_coef: float

    @property
    def uses_reference(self) -> bool:
        """Whether the loss compares the policy with a reference."""
        return self.loss != "simpo"


@dataclass(frozen=True)
class PairBatch:
    """All chosen rows, then all rejected rows, with their log-probs under the reference."""

    sequences: Sequences
    ref_logps: Tensor
    """Summed response log-probs under the reference; of no effect where the loss uses none. (2B,)"""
    wins: Tensor | None = None
    """How often each response wins against the policy's; only ``sppo`` reads it. (2B,)"""
    smoothing: Tensor | None = None
    """Probability that each label is wrong; None: that of the settings. (B,)"""


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    loss: str,
    label_smoothing: float | Tensor,
) -> Tensor:
    """Return the loss of each pair, not reduced.

    Args:
        chosen_logps: log π(y_w|x), nats. (B,)
        rejected_logps: log π(y_l|x). (B,)
        ref_chosen_logps: log π_ref(y_w|x). (B,)
        ref_rejected_logps: log π_ref(y_l|x). (B,)
        beta: β.
        loss: ``sigmoid``, ``ipo``, ``hinge`` or ``robust``.
        label_smoothing: ε, the probability that a label is wrong, below ½; one for all, or (B,).

    Returns:
        (B,)

    Raises:
        ValueError: the loss has another name.
    """
    logratios = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)

    def labelled(difference: Tensor) -> Tensor:
        if loss in {"sigmoid", "robust"}:
            return -F.logsigmoid(beta * difference)
        if loss == "hinge":
            return torch.relu(1.0 - beta * difference)
        if loss == "ipo":
            return (difference - 1.0 / (2.0 * beta)).square()
        raise ValueError(f"dpo loss {loss!r} is not one of sigmoid, ipo, hinge, robust")

    true, flipped = (1.0 - label_smoothing) * labelled(logratios), label_smoothing * labelled(-logratios)
    return (true - flipped) / (1.0 - 2.0 * label_smoothing) if loss == "robust" else true + flipped


def simpo_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, *, beta: float, margin: float, label_smoothing: float | Tensor
) -> Tensor:
    """Return −log σ(h) with h = β·(mean log π(y_w|x) − mean log π(y_l|x)) − γ for each pair, not reduced.

    Meng et al. 2024, arXiv:2405.14734, Eq. 6. Label smoothing mixes in −log σ(−h), γ included.

    Args:
        chosen_logps: log π(y_w|x) per token. (B,)
        rejected_logps: log π(y_l|x) per token. (B,)
        beta: β.
        margin: γ.
        label_smoothing: ε, the probability that a label is wrong; one for all, or (B,).

    Returns:
        (B,)
    """
    h = beta * (chosen_logps - rejected_logps) - margin
    return -(1.0 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)


def sppo_loss(logratios: Tensor, wins: Tensor, *, beta: float, label_smoothing: float | Tensor) -> Tensor:
    """Return ½·[(c − (P_c − ½)/β)² + (r − (P_r − ½)/β)²] for each pair, not reduced.

    Wu et al. 2024, arXiv:2405.00675, Eq. 3.6 with η = 1/β, where log Z is replaced by η/2. So the minimiser is not
    exactly the policy π_ref·exp(P/β)/Z of Eq. 3.4. The ½ is that of the official code: a mean over both responses.

    Args:
        logratios: log π/π_ref of all chosen responses (c), then of all rejected ones (r). (2B,)
        wins: P, how often each response wins against those of the policy. (2B,)
        beta: β = 1/η.
        label_smoothing: ε, the probability that a comparison is wrong: P becomes (1−2ε)·P + ε; one for all, or (B,).

    Returns:
        (B,)
    """
    noise = label_smoothing.repeat(2) if isinstance(label_smoothing, Tensor) else label_smoothing
    smoothed = (1.0 - 2.0 * noise) * wins + noise
    chosen, rejected = (logratios - (smoothed - 0.5) / beta).square().chunk(2)
    return 0.5 * (chosen + rejected)


def count(batch: PairBatch) -> float:
    """Return the pairs of a micro-batch: the share of the denominator it brings."""
    return len(batch.ref_logps) / 2


def step(models: Models, batch: PairBatch, config: DPOConfig) -> StepOutput:
    """Return the loss of each pair. (B,)"""
    mask = batch.sequences.response_mask[:, 1:]
    lengths = mask.sum(-1)
    logprobs, _ = models.logprobs("policy", batch.sequences)
    summed = masked_sum(logprobs, mask)
    means = config.loss in {"ipo", "simpo"}
    logps, ref_logps = (summed / lengths, batch.ref_logps / lengths) if means else (summed, batch.ref_logps)
    if not config.uses_reference:
        ref_logps = torch.zeros_like(logps)
    chosen, rejected = logps.chunk(2)
    ref_chosen, ref_rejected = ref_logps.chunk(2)
    smoothing = config.label_smoothing if batch.smoothing is None else batch.smoothing
    if config.loss == "simpo":
        losses = simpo_loss(chosen, rejected, beta=config.beta, margin=config.simpo_margin, label_smoothing=smoothing)
    elif config.loss == "sppo":
        assert batch.wins is not None
        losses = sppo_loss(logps - ref_logps, batch.wins, beta=config.beta, label_smoothing=smoothing)
    else:
        losses = dpo_loss(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            beta=config.beta,
            loss=config.loss,
            label_smoothing=smoothing,
        )
    nll = -(summed / lengths).chunk(2)[0]
    if config.nll_coef:
        losses = losses + config.nll_coef * nll
    chosen_rewards = config.beta * (chosen - ref_chosen).detach()
    rejected_rewards = config.beta * (rejected - ref_rejected).detach()
    chosen_logps, rejected_logps = summed.detach().chunk(2)
    return StepOutput(
        losses=losses,
        mask=torch.ones_like(losses, dtype=torch.bool),
        metrics={
            "rewards/accuracy": (chosen_rewards > rejected_rewards).float(),
            "rewards/margin": chosen_rewards - rejected_rewards,
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "logps/chosen": chosen_logps,
            "logps/rejected": rejected_logps,
            "nll": nll.detach(),
        },
    )


def build(models: Models, config: DPOConfig) -> OfflineAlgorithm[PairBatch]:
    """Bind the algorithm to models with the role ``policy`` and to its settings."""
    return OfflineAlgorithm(
        step=lambda batch: step(models, batch, config), count=count, tokens=lambda batch: batch.sequences.tokens()
    )
