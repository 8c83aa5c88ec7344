"""Makes a library model attend over a prefix tree: its input is one flat row, and only attention uses the rows.

The model's own kind of attention is wrapped in the library's registries. Without a tree (sampling, a plain call) the
wrapped functions run unchanged; with a tree, queries, keys and values are arranged as rows, and the output as the flat
row. On a CPU ``tree_attention`` replaces plain causal attention: it copies nothing and is several times faster.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alignflow.prefix_tree import PrefixTree, prefix_tree, tree_attention

PREFIX = "prefix_tree_"
_TREE: ContextVar[PrefixTree | None] = ContextVar("tree", default=None)


@dataclass(frozen=True)
class _Mask:
    """What the layers pass to attention instead of a mask, also when they are recomputed for gradients."""

    tree: PrefixTree
    rows: Tensor | None
    """The mask of the wrapped attention for rows; None for plain causal attention, which needs none."""


def attend_over_trees(model: Any, compute: torch.dtype | None = None) -> None:
    """Prepare a model's attention for ``tree_states``, permanently.

    Args:
        model: a causal language model.
        compute: dtype in which attention is computed; None: that of the queries.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = model.config._attn_implementation
    if own.startswith(PREFIX):
        return
    wide = compute if compute != model.dtype else None
    name = PREFIX + (f"{wide}_" if wide else "") + own
    ALL_ATTENTION_FUNCTIONS.register(name, partial(_attention, own=own, compute=wide))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, partial(_mask, own=ALL_MASK_ATTENTION_FUNCTIONS[own]))
    model.set_attn_implementation(name)
    model.attention_dtype = wide


def tree_states(decoder: Any, tree: PrefixTree) -> Tensor:
    """Return the last hidden state at each prefix. (N, H)"""
    with _attending(tree):
        flat: Tensor = decoder(
            input_ids=tree.tokens[None],
            attention_mask=torch.ones_like(tree.tokens)[None],  # otherwise the library derives sequences from positions
            position_ids=tree.positions[None],
            use_cache=False,
        ).last_hidden_state
    return flat[0]


def at_rows(flat: Tensor, rows: Tensor) -> Tensor:
    """Return the values of each row's tokens, given their indices. (N, …), (B, L) -> (B, L, …)"""
    return flat.index_select(0, rows.flatten()).view(*rows.shape, *flat.shape[1:])


@contextmanager
def _attending(tree: PrefixTree) -> Iterator[None]:
    token = _TREE.set(tree)
    try:
        yield
    finally:
        _TREE.reset(token)


def _mask(batch_size: int, q_length: int, kv_length: int, *, own: Any, **rest: Any) -> Any:
    tree = _TREE.get()
    if tree is None:
        return own(batch_size, q_length, kv_length, **rest)
    size, length = tree.rows.shape
    return _Mask(tree, own(size, length, length, **{**rest, "attention_mask": None}))


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    own: str,
    compute: torch.dtype | None,
    **rest: Any,
) -> tuple[Tensor, Any]:
    """Attend with the wrapped attention or over a tree. (1, heads, N, D) -> (1, N, heads, D)"""
    attend = _wrapped(own, module)
    if compute is not None:
        attend = partial(_attend_in, attend, torch.promote_types(query.dtype, compute))
    if not isinstance(attention_mask, _Mask):
        found: tuple[Tensor, Any] = attend(module, query, key, value, attention_mask, **rest)
        return found
    tree, flat = attention_mask.tree, [x[0].transpose(0, 1).contiguous() for x in (query, key, value)]
    if query.device.type == "cpu" and own == "sdpa" and attention_mask.rows is None:
        scale = rest.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return tree_attention(tree, *flat, scale=scale, compute=compute)[None], None
    rows = [at_rows(x, tree.rows).transpose(1, 2) for x in flat]
    out = attend(module, *rows, attention_mask.rows, **rest)[0]  # (B, L, heads, D)
    return out.flatten(0, 1).index_select(0, tree.owners)[None], None


def _attend_in(
    attend: Any, compute: torch.dtype, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any
) -> tuple[Tensor, Any]:
    """Attend in a dtype: all of it, only the result is rounded, as the library's kernels keep scores in float32."""
    if mask is not None and mask.is_floating_point():
        mask = mask.to(compute)
    found, weights = attend(module, query.to(compute), key.to(compute), value.to(compute), mask, **rest)
    return found.to(query.dtype), weights


def _wrapped(own: str, module: Any) -> Any:
    """Return the attention function that a model would call; the eager one is in the model's own module."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS.get(own) or sys.modules[type(module).__module__].eager_attention_forward


def shares_prefixes(model: Any, decoder: Any) -> bool:
    """Return whether a model's states over a small tree equal those of its single rows.

    They differ if a layer mixes tokens by other means than attention, or has its own form of attention.
    """
    device = next(model.parameters()).device
    rows = [[3, 1, 4, 1, 5], [3, 1, 4, 2], [2, 7]]
    with torch.no_grad():
        tree = prefix_tree(rows, device)
        flat = tree_states(decoder, tree)
        apart = [
            decoder(input_ids=torch.tensor([row], device=device), use_cache=False).last_hidden_state[0] for row in rows
        ]
    found = torch.cat([flat[tree.rows[i, : len(row)]] for i, row in enumerate(rows)]).float()
    expected = torch.cat(apart).float()
    return bool((found - expected).norm() < 0.05 * expected.norm())  # bfloat16 differs by about 0.01
