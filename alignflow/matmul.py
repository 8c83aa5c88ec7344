"""Matrix products of bfloat16 numbers on processors without bfloat16 instructions: computed in float32, then rounded.

bfloat16 instructions multiply numbers of 8 bits and add the products up in float32; the sum is rounded to bfloat16.
Float32 instructions give the same from the same operands, up to the order of sums, and without bfloat16 instructions
they are many times faster. So the processor decides the dtype in which products are computed, not the numbers.
"""

import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def matmul_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which a device computes products of numbers of ``dtype`` fastest."""
    emulated = dtype == torch.bfloat16 and device.type == "cpu" and not has_bfloat16()
    return torch.float32 if emulated else dtype


def has_bfloat16() -> bool:
    """Return whether this processor has instructions for products of bfloat16 numbers.

    oneDNN says yes for every processor with AVX-512, also where it only converts, so x86 is asked itself.
    """
    if platform.machine().lower() in ("x86_64", "amd64", "x86", "i686"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def matmul(a: Tensor, b: Tensor, compute: torch.dtype, result: torch.dtype) -> Tensor:
    """Return a · b, computed in one dtype and rounded to another."""
    return (a.to(compute) @ b.to(compute)).to(result)


def product(states: Tensor, weight: Tensor, bias: Tensor | None, compute: torch.dtype) -> Tensor:
    """Return states · weightᵀ + bias, computed in a dtype and rounded to that of the states. No gradient."""
    added = None if bias is None else bias.to(compute)
    return F.linear(states.to(compute), weight.to(compute), added).to(states.dtype)


class _Linear(torch.autograd.Function):
    """states · weightᵀ + bias. The backward pass reads the weight again, so that no converted copy of it is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        values: Callable[[Tensor], Tensor],
        compute: torch.dtype,
    ) -> Tensor:
        of_states, of_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(states if of_weight else None, weight if of_states else None)
        ctx.values, ctx.compute = values, compute
        return product(states, values(weight), bias, compute)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        wide = grad.to(ctx.compute)
        of_states = None if weight is None else matmul(wide, ctx.values(weight), ctx.compute, grad.dtype)
        of_weight = None
        if states is not None:
            of_weight = matmul(wide.flatten(0, -2).mT, states.flatten(0, -2), ctx.compute, grad.dtype)
        return of_states, of_weight, None, None, None


def linear(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    compute: torch.dtype,
    values: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Tensor:
    """Return states · weightᵀ + bias, forward and backward computed in a dtype and rounded to that of the states.

    Args:
        states: (…, H)
        weight: (N, H), or any form of it that ``values`` unpacks; then it is frozen.
        bias: frozen. (N,)
        compute: dtype of the products.
        values: returns the weight (N, H) from its stored form.

    Returns:
        (…, N)
    """
    out: Tensor = _Linear.apply(states, weight, bias, values, compute)  # type: ignore[no-untyped-call]  # torch gives none
    return out
