"""Linear layers whose products are computed in another dtype than their numbers have, and layers for sampling."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alignflow.matmul import linear

PACKED_ROWS = 32  # rows of a decode step, for which a weight's layout is optimised; it works for other numbers, too


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Make all linear layers of a model compute their products in a dtype, 4-bit layers and adapters included.

    Their weights and results keep their dtypes. It can be called again after layers were added.
    """
    from transformers.pytorch_utils import Conv1D

    for layer in model.modules():
        if isinstance(layer, nn.Linear | Conv1D):
            layer.forward = partial(_forward, layer, dtype)  # type: ignore[method-assign]  # of this layer alone


def _forward(layer: Any, compute: torch.dtype, states: Tensor) -> Tensor:
    return linear(
        states,
        layer.weight,
        layer.bias,
        compute=torch.promote_types(states.dtype, compute),
        values=partial(_values, layer, states.dtype),
    )


def _values(layer: Any, dtype: torch.dtype, weight: Tensor) -> Tensor:
    """Return a layer's weight as numbers of a dtype. (N, H)"""
    import bitsandbytes as bnb

    if isinstance(layer, bnb.nn.Linear4bit):
        unpacked: Tensor = bnb.functional.dequantize_4bit(weight, layer.weight.quant_state)
        return unpacked.to(dtype)
    return weight if isinstance(layer, nn.Linear) else weight.mT  # the library's Conv1D stores it transposed


class PackedLinear(nn.Module):
    """A linear layer without gradients for a CPU, with its weight in the memory layout of oneDNN's kernels."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack a weight, in whose dtype the layer computes. (N, H)"""
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)
        self.bias = None if bias is None else bias.to(weight.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """Return states · weightᵀ + bias, rounded to the dtype of the states. (…, H) -> (…, N)"""
        wide = states.to(self.weight.dtype)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(wide, self.weight, self.bias, "none", [], "")
        return product.to(states.dtype)


def packable(weight: Tensor) -> bool:
    """Return whether oneDNN has kernels for a weight on its device."""
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and bfloat16)


def frozen_linear(weight: Tensor, bias: Tensor | None, compute: torch.dtype) -> nn.Module:
    """Return a linear layer without gradients that holds its weight in the dtype of its products. (N, H)"""
    held = weight.to(compute)
    if packable(held):
        return PackedLinear(held, bias)
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(held, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    if compute != weight.dtype:
        compute_in(plain, compute)
    return plain
