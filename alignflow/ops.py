"""Pure tensor maths of the algorithms. Masks are True where a token counts; masking selects, never multiplies."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from alignflow.matmul import matmul, product

ROWS = 8  # of a chunk whose float32 logits a CPU computes together, so that they stay in its caches


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return Σ values over the True entries of the mask along the last axis. (B, T) -> (B,)"""
    return torch.where(mask, values, 0.0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over all True entries, a scalar; 0 if there are none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Shift and scale the True entries together to mean 0 and unbiased standard deviation 1; zero elsewhere.

    Fewer than two entries have no standard deviation and are only centred.

    Args:
        values: numbers, any shape.
        mask: True where a number counts; same shape.
        keep_mean: scale around the mean and keep it: for rewards, whose sign matters.
    """
    mean, count = masked_mean(values, mask), mask.sum()
    centred = values - mean
    if count >= 2:
        variance = torch.where(mask, centred.square(), 0.0).sum() / (count - 1)
        centred = centred * torch.rsqrt(variance + 1e-8)  # 1e-8: all entries may be equal
    return torch.where(mask, centred + mean if keep_mean else centred, 0.0)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log π − log π_ref: unbiased for KL(π‖π_ref) under samples of π, can be negative. Elementwise, nats."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return exp(δ) − δ − 1 with δ = log π_ref − log π: unbiased under samples of π and never negative.

    Schulman, "Approximating KL divergence" (2020); Eq. 4 of Shao et al. 2024, arXiv:2402.03300. δ is clamped
    to ±20 so that exp does not overflow. Elementwise, nats.
    """
    delta = (ref_logprobs - logprobs).clamp(-20.0, 20.0)
    return torch.expm1(delta) - delta


def importance_weights(logprobs: Tensor, sampled_logprobs: Tensor, *, cap: float) -> Tensor:
    """Return min(π_old(y_t) / π_sampler(y_t), C): the importance weight of a token from a sampler with other rounding.

    Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training" (truncated importance
    sampling). Elementwise.

    Args:
        logprobs: log π_old, as training computes it before the first update.
        sampled_logprobs: log π_sampler of the same tokens.
        cap: C.
    """
    return torch.exp((logprobs - sampled_logprobs).clamp(max=20.0)).clamp(max=cap)


def importance(
    logprobs: Tensor, sampled_logprobs: Tensor | None, mask: Tensor, *, cap: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the importance weight of each token, and metrics; without a cap, weights 1 and no metrics.

    Args:
        logprobs: log π_old. (B, S-1)
        sampled_logprobs: log π_sampler; may be None only if there is no cap. (B, S-1)
        mask: True at response tokens. (B, S-1)
        cap: C of ``importance_weights``.
    """
    if cap is None:
        return torch.ones_like(logprobs), {}
    assert sampled_logprobs is not None, "importance weights need the sampler's log-probs"
    weights = importance_weights(logprobs, sampled_logprobs, cap=cap)
    return weights, {
        "importance/mean": weights[mask],
        "importance/clipped_fraction": (weights >= cap).to(weights.dtype)[mask],
    }


KL_ESTIMATORS = {"k1": kl_k1, "k3": kl_k3}


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probs and entropies of given tokens, without (N, V) logits of all N positions in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float,
        chunk: int,
        entropy: bool,
        compute: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        wide = weight.to(compute)
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropies = torch.zeros_like(logprobs)
        normalizers = torch.empty_like(logprobs)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # ∂ log p_y / ∂ hidden
        for part in _parts(len(targets), chunk):
            whole = product(hidden[part], wide, bias, compute)
            for rows, products in _few(part, whole):
                logits, bend = _logits(products, scale, softcap)
                peak = logits.amax(-1, keepdim=True)
                odds = logits.sub_(peak).exp()
                total = odds.sum(-1, keepdim=True)
                normalizer = total.log()
                logprobs[rows] = (logits.gather(1, targets[rows, None]) - normalizer)[:, 0]
                normalizers[rows] = (peak + normalizer)[:, 0]
                if entropy:  # log Σ e^l − Σ p·l with l ≤ 0: a sum of two non-negative terms, so no cancellation
                    entropies[rows] = (normalizer - (odds * logits).sum(-1, keepdim=True) / total)[:, 0]
                if slopes is not None:  # ∂ log p_y / ∂ logit_v = [v = y] − p_v, in place of the products
                    share = odds.div_(-total)
                    share.scatter_add_(1, targets[rows, None], torch.ones_like(total))
                    products.copy_(share.mul_(bend))
            if slopes is not None:
                slopes[part] = matmul(whole, wide, compute, whole.dtype)
        ctx.save_for_backward(hidden, weight, normalizers, entropies, slopes)
        ctx.bias, ctx.scale, ctx.softcap, ctx.chunk, ctx.compute = bias, scale, softcap, chunk, compute
        ctx.set_materialize_grads(False)  # entropies are mostly metrics only: their gradient is then None
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, normalizers, entropies, slopes = ctx.saved_tensors
        pull = torch.zeros_like(normalizers) if grad_logprobs is None else grad_logprobs
        grad_hidden = (slopes * pull[:, None]).to(hidden.dtype)
        if grad_entropies is None:
            return grad_hidden, None, None, None, None, None, None, None, None
        wide = weight.to(ctx.compute)
        for part in _parts(len(normalizers), ctx.chunk):
            whole = product(hidden[part], wide, ctx.bias, ctx.compute)
            for rows, products in _few(part, whole):
                logits, bend = _logits(products, ctx.scale, ctx.softcap)
                # ∂ H / ∂ logit_v = −p_v·(log p_v + H)
                logp = logits.sub_(normalizers[rows, None])
                share = (logp + entropies[rows, None]).mul_(-grad_entropies[rows, None])
                products.copy_(logp.exp_().mul_(share).mul_(bend))
            grad_hidden[part] += matmul(whole, wide, ctx.compute, whole.dtype)
        return grad_hidden, None, None, None, None, None, None, None, None


def _parts(total: int, chunk: int) -> list[slice]:
    return [slice(i, min(i + chunk, total)) for i in range(0, total, chunk)]


def _few(part: slice, products: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Split a chunk's products into parts whose logits fit a CPU's caches; a GPU takes all of them together.

    Yields:
        The positions, and a view of their products.
    """
    for few in _parts(len(products), ROWS if products.device.type == "cpu" else len(products)):
        yield slice(part.start + few.start, part.start + few.stop), products[few]


def _logits(products: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor | float]:
    """Return scale·c·tanh(x/c), and its derivative, of products x; overwrites float32 products."""
    logits = products.float()
    if not softcap:
        return logits.mul_(scale), scale
    squashed = torch.tanh(logits / softcap)
    return squashed * (scale * softcap), scale * (1 - squashed.square())


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float = 0.0,
    chunk: int = 128,
    entropy: bool = False,
    compute: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return log π(target) at each position, and the entropy of π there (zeros if ``entropy`` is False).

    log softmax(logits / temperature)[target] with logits = hidden · weightᵀ (+ bias), in float32. The numbers are those
    of ``log_softmax(logits)`` and ``gather``, but only the logits of ``chunk`` positions are in memory together; on a
    CPU only a few rows of them in float32. The weight is frozen and gets no gradient. The forward pass computes the
    gradient of the states as well, while it has the logits; the backward pass computes logits again only for entropies.

    Args:
        hidden: last hidden states at the positions that predict. (N, H)
        weight: output embedding. (V, H)
        targets: token ids to predict. (N,)
        bias: bias of the output embedding. (V,)
        temperature: sampling temperature; divides the logits.
        softcap: c of c·tanh(logits / c), which some models apply; 0 for none.
        chunk: number of positions whose logits are in memory together.
        entropy: whether to compute entropies.
        compute: dtype in which the products are computed; None: that of the states.

    Returns:
        Log-probs and entropies in nats, float32. (N,), (N,)
    """
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]  # torch gives none
        hidden, weight, bias, targets, 1.0 / temperature, softcap, chunk, entropy, compute or hidden.dtype
    )
    return result
