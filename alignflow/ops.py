"""Pure tensor maths of the algorithms. Masks are True where a token counts; masking selects, never multiplies."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 8  # of a chunk, whose logits a CPU has in float32 at once: memory that it writes again and again, in its caches


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Return Σ values over the True entries of the mask along the last axis. (B, T) -> (B,)"""
    return torch.where(mask, values, 0.0).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over all True entries, a scalar; 0 where there is none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Shift and scale the True entries together to mean 0 and unbiased standard deviation 1; zero elsewhere.

    Fewer than two entries are only centred: they have no deviation.

    Args:
        values: numbers of any shape.
        mask: True where they count; same shape.
        keep_mean: scale around the mean and keep the mean: for rewards, whose sign matters.
    """
    mean, count = masked_mean(values, mask), mask.sum()
    centred = values - mean
    if count >= 2:
        variance = torch.where(mask, centred.square(), 0.0).sum() / (count - 1)
        centred = centred * torch.rsqrt(variance + 1e-8)  # 1e-8: all entries may be equal
    return torch.where(mask, centred + mean if keep_mean else centred, 0.0)


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log π − log π_ref: unbiased for KL(π‖π_ref) under samples of π, of either sign. Elementwise, nats."""
    return logprobs - ref_logprobs


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return exp(δ) − δ − 1 with δ = log π_ref − log π: unbiased under samples of π and never negative.

    Schulman, "Approximating KL divergence" (2020); Eq. 4 of Shao et al. 2024, arXiv:2402.03300. δ is clamped
    to ±20 so that one token cannot overflow. Elementwise, nats.
    """
    delta = (ref_logprobs - logprobs).clamp(-20.0, 20.0)
    return torch.expm1(delta) - delta


def importance_weights(logprobs: Tensor, sampled_logprobs: Tensor, *, cap: float) -> Tensor:
    """Return min(π_old(y_t) / π_sampler(y_t), C): the weight of a token from a sampler that rounds differently.

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
    """Return the importance weight of each token, and their metrics; ones and none where there is no cap.

    Args:
        logprobs: log π_old. (B, S-1)
        sampled_logprobs: log π_sampler; may lack only without a cap. (B, S-1)
        mask: True at response tokens. (B, S-1)
        cap: C of ``importance_weights``.
    """
    if cap is None:
        return torch.ones_like(logprobs), {}
    assert sampled_logprobs is not None, "an importance weight needs what the sampler said"
    weights = importance_weights(logprobs, sampled_logprobs, cap=cap)
    return weights, {
        "importance/mean": weights[mask],
        "importance/clipped_fraction": (weights >= cap).to(weights.dtype)[mask],
    }


KL_ESTIMATORS = {"k1": kl_k1, "k3": kl_k3}


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probs and entropies of given tokens without ever holding (N, V) logits for all N positions."""

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
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropies = torch.zeros_like(logprobs)
        normalizers = torch.empty_like(logprobs)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # ∂ log p_y / ∂ hidden
        for part in _parts(len(targets), chunk):
            whole = F.linear(hidden[part], weight, bias)
            for rows, products in _few(part, whole):
                logits, bend = _logits(products, scale, softcap)
                peak = logits.amax(-1, keepdim=True)
                odds = logits.sub_(peak).exp()
                total = odds.sum(-1, keepdim=True)
                normalizer = total.log()
                logprobs[rows] = (logits.gather(1, targets[rows, None]) - normalizer)[:, 0]
                normalizers[rows] = (peak + normalizer)[:, 0]
                if entropy:  # log Σ e^l − Σ p·l with l ≤ 0: neither term is negative, so no digits cancel
                    entropies[rows] = (normalizer - (odds * logits).sum(-1, keepdim=True) / total)[:, 0]
                if slopes is not None:  # ∂ log p_y / ∂ logit_v = [v = y] − p_v, in the memory of the products
                    share = odds.div_(-total)
                    share.scatter_add_(1, targets[rows, None], torch.ones_like(total))
                    products.copy_(share.mul_(bend))
            if slopes is not None:
                slopes[part] = whole @ weight
        ctx.save_for_backward(hidden, weight, normalizers, entropies, slopes)
        ctx.bias, ctx.scale, ctx.softcap, ctx.chunk = bias, scale, softcap, chunk
        ctx.set_materialize_grads(False)  # entropies are mostly looked at only: their gradient is then None
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, normalizers, entropies, slopes = ctx.saved_tensors
        pull = torch.zeros_like(normalizers) if grad_logprobs is None else grad_logprobs
        grad_hidden = (slopes * pull[:, None]).to(hidden.dtype)
        if grad_entropies is None:
            return grad_hidden, None, None, None, None, None, None, None
        for part in _parts(len(normalizers), ctx.chunk):
            whole = F.linear(hidden[part], weight, ctx.bias)
            for rows, products in _few(part, whole):
                logits, bend = _logits(products, ctx.scale, ctx.softcap)
                # ∂ H / ∂ logit_v = −p_v·(log p_v + H)
                logp = logits.sub_(normalizers[rows, None])
                share = (logp + entropies[rows, None]).mul_(-grad_entropies[rows, None])
                products.copy_(logp.exp_().mul_(share).mul_(bend))
            grad_hidden[part] += whole @ weight
        return grad_hidden, None, None, None, None, None, None, None


def _parts(total: int, chunk: int) -> list[slice]:
    return [slice(i, min(i + chunk, total)) for i in range(0, total, chunk)]


def _few(part: slice, products: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Cut a chunk's products into rows few enough that a CPU's caches hold their logits; a GPU takes all at once.

    Yields:
        The positions, and their products: a view.
    """
    for few in _parts(len(products), ROWS if products.device.type == "cpu" else len(products)):
        yield slice(part.start + few.start, part.start + few.stop), products[few]


def _logits(products: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor | float]:
    """Return scale·c·tanh(x/c), and its derivative, of products x; float32 ones are used up."""
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
) -> tuple[Tensor, Tensor]:
    """Return log π(target) at each position, and the entropy of π there (zeros unless asked for).

    log softmax(logits / temperature)[target] with logits = hidden · weightᵀ (+ bias), in float32. Same numbers
    as ``log_softmax(logits)`` and ``gather``, but logits exist for ``chunk`` positions at a time, in
    float32 on a CPU for a few rows of them. The weight is frozen, so no gradient reaches it, and that of the states
    is found while their logits are there: the backward pass computes them again for a gradient of entropies alone.

    Args:
        hidden: last hidden states at the predicting positions. (N, H)
        weight: output embedding. (V, H)
        targets: the predicted token ids. (N,)
        bias: of the output embedding. (V,)
        temperature: of sampling; divides the logits.
        softcap: c of c·tanh(logits / c), which some models apply; 0 for none.
        chunk: positions whose logits exist at once.
        entropy: compute entropies.

    Returns:
        Log-probs and entropies in nats, float32. (N,), (N,)
    """
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]  # torch gives none
        hidden, weight, bias, targets, 1.0 / temperature, softcap, chunk, entropy
    )
    return result
