"""Figures of one policy on prompts it never saw, and of a reward model on pairs it never saw."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignflow.types import Sequences


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p‖q) = Σ_v p(v)·(log p(v) − log q(v)) of each row. (N, V), (N, V) -> (N,) nats"""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def response_kl(
    policy_hidden: Tensor,
    reference_hidden: Tensor,
    weight: Tensor,
    batch: Sequences,
    *,
    bias: Tensor | None,
    softcap: float,
    chunk: int = 128,
) -> Tensor:
    """Return Σ_t KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)) along each response: exact at every token, at temperature 1.

    Summing the whole distribution's KL, instead of the sampled token's log-ratio, has the same expectation under
    samples of π, is never negative and varies less.

    Args:
        policy_hidden: last hidden states of the policy. (B, S, H)
        reference_hidden: of the reference. (B, S, H)
        weight: output embedding. (V, H)
        batch: prompts with responses. B rows
        bias: of the output embedding. (V,)
        softcap: cap of the logits, 0 for none.
        chunk: positions whose logits exist at once.

    Returns:
        Nats a response. (B,)
    """
    mask = batch.response_mask[:, 1:]
    mine, other = policy_hidden[:, :-1][mask], reference_hidden[:, :-1][mask]
    values = torch.cat(
        [
            exact_kl(_log_softmax(a, weight, bias, softcap), _log_softmax(b, weight, bias, softcap))
            for a, b in zip(torch.split(mine, chunk), torch.split(other, chunk), strict=True)
        ]
    )
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values).sum(1)


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return torch.log_softmax(softcap * torch.tanh(logits / softcap) if softcap else logits, -1)


def calibration_error(margins: Sequence[float], *, bins: int = 10) -> float:
    """Return the expected calibration error of σ(margin) as the probability that the chosen one is preferred.

    Each pair counts once as (p, 1) and once, swapped, as (1−p, 0); Σ_bins |mean p − mean label|·share.
    Guo et al. 2017, arXiv:1706.04599, Eq. 3.
    """
    p = torch.sigmoid(torch.tensor(margins, dtype=torch.float64))
    probabilities = torch.cat([p, 1 - p])
    labels = torch.cat([torch.ones_like(p), torch.zeros_like(p)])
    index = (probabilities * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            gap = (probabilities[inside].mean() - labels[inside].mean()).abs()
            error += float(gap) * float(inside.double().mean())
    return error
