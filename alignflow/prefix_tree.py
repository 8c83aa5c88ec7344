"""Rows as a tree of their prefixes: a shared prefix is stored once, and there is no padding.

In a causal model the state at a token depends only on the tokens up to it. So rows with a common prefix (the header of
a chat template, one prompt with several responses, a preference pair) have equal states there. Operations that treat
each token by itself (embeddings, norms, linear layers with their 4-bit weights) compute each distinct prefix once. Only
attention needs the rows. The numbers are those of padded rows, up to the order of sums; the gradient of a shared token
is the sum over its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor

from alignflow.matmul import matmul

# of one row in a block: bounds the attention scores in memory, and the share of them that is masked
QUERIES = 256


@dataclass(frozen=True)
class Branch:
    """The tokens of a row that are in no earlier row."""

    row: int
    depth: int
    """Number of tokens that the row shares with earlier rows."""
    start: int
    """Index of its first own token in the flat order, where its own tokens are contiguous."""
    stop: int


@dataclass(frozen=True)
class PrefixTree:
    """N distinct prefixes of B rows, in order of first occurrence."""

    tokens: Tensor
    """Last token of each prefix. (N,)"""
    positions: Tensor
    """Number of tokens before it in its row. (N,)"""
    rows: Tensor
    """Indices of a row's tokens among the N, without padding before them; 0 after its end. (B, L)"""
    branches: tuple[Branch, ...]
    """In flat order; a row without new tokens has no branch."""

    @cached_property
    def owners(self) -> Tensor:
        """Index of the first occurrence of each prefix in the flattened rows. (N,)"""
        width = self.rows.shape[1]
        places = [range(b.row * width + b.depth, b.row * width + b.depth + b.stop - b.start) for b in self.branches]
        return torch.tensor([i for place in places for i in place], device=self.rows.device)


def prefix_tree(rows: Sequence[Sequence[int]], device: torch.device) -> PrefixTree:
    """Return the tree of token rows, none of them empty."""
    numbers = count()
    known: dict[tuple[int, int], int] = {}  # (number of the prefix before, token) -> number
    tokens, positions, branches = [], [], []
    table = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for r, row in enumerate(rows):
        path, before, first = [], -1, len(known)
        for depth, token in enumerate(row):
            number = known.get((before, token))
            if number is None:
                number = known[before, token] = next(numbers)
                tokens.append(token)
                positions.append(depth)
            path.append(number)
            before = number
        table[r, : len(path)] = torch.tensor(path)
        if len(known) > first:
            branches.append(Branch(r, len(row) - (len(known) - first), first, len(known)))
    return PrefixTree(
        torch.tensor(tokens, device=device),
        torch.tensor(positions, device=device),
        table.to(device),
        tuple(branches),
    )


class _TreeAttention(torch.autograd.Function):
    """Attention of every prefix to itself and its earlier prefixes; the backward pass recomputes the probabilities."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scale: float, compute: torch.dtype
    ) -> Tensor:
        out = torch.empty_like(query)
        future = _future(query)
        for branch in tree.branches:
            keys, values = (_of_row(x, tree, branch).to(compute) for x in (key, value))
            for block, seen in _blocks(branch):
                queries = _grouped(query[block], key).to(compute)
                weights = _weights(queries, keys[:, :seen], future, scale, tokens=block.stop - block.start)
                out[block] = _ungrouped(matmul(weights, values[:, :seen], compute, query.dtype), query)
        ctx.save_for_backward(query, key, value)
        ctx.tree, ctx.scale, ctx.compute = tree, scale, compute
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        tree, scale, compute = ctx.tree, ctx.scale, ctx.compute
        grad_query = torch.empty_like(query)
        # the gradient of a prefix that many rows share is a sum of many small parts
        wide = torch.promote_types(key.dtype, torch.float32)
        grad_key, grad_value = (torch.zeros_like(x, dtype=wide) for x in (key, value))
        future = _future(query)
        for branch in tree.branches:
            keys, values = (_of_row(x, tree, branch).to(compute) for x in (key, value))
            row_key, row_value = (torch.zeros_like(x, dtype=wide) for x in (keys, values))
            for block, seen in _blocks(branch):
                queries, pull = (_grouped(x[block], key).to(compute) for x in (query, grad))
                weights = _weights(queries, keys[:, :seen], future, scale, tokens=block.stop - block.start)
                row_value[:, :seen] += matmul(weights.mT, pull, compute, query.dtype)
                # ∂L/∂s = p ⊙ (∂L/∂p − Σ p·∂L/∂p)
                pulled = matmul(pull, values[:, :seen].mT, compute, query.dtype)
                scores = torch.ops.aten._softmax_backward_data(pulled, weights, -1, weights.dtype) * scale
                grad_query[block] = _ungrouped(matmul(scores, keys[:, :seen], compute, query.dtype), query)
                row_key[:, :seen] += matmul(scores.mT, queries, compute, query.dtype)
            shared = tree.rows[branch.row, : branch.depth]
            for whole, row in ((grad_key, row_key.transpose(0, 1)), (grad_value, row_value.transpose(0, 1))):
                whole.index_add_(0, shared, row[: branch.depth])
                whole[branch.start : branch.stop] += row[branch.depth :]
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def tree_attention(
    tree: PrefixTree, query: Tensor, key: Tensor, value: Tensor, *, scale: float, compute: torch.dtype | None = None
) -> Tensor:
    """Return softmax(scale · q kᵀ) v of each prefix over the prefixes of its row up to and including itself.

    A loop over rows whose products have few masked entries. Meant for CPUs, where products cost more than calls.

    Args:
        tree: N prefixes.
        query: (N, heads, D)
        key: (N, groups, D), heads a multiple of groups
        value: (N, groups, D)
        scale: scale of the scores.
        compute: dtype in which the products are computed; None: that of the queries.

    Returns:
        (N, heads, D)
    """
    out: Tensor = _TreeAttention.apply(  # type: ignore[no-untyped-call]  # torch gives none
        query, key, value, tree, scale, compute or query.dtype
    )
    return out


def _blocks(branch: Branch) -> list[tuple[slice, int]]:
    """Return parts of a branch, each with the number of tokens of the row that its last query attends to."""
    starts = range(branch.start, branch.stop, QUERIES)
    parts = [slice(start, min(start + QUERIES, branch.stop)) for start in starts]
    return [(part, branch.depth + part.stop - branch.start) for part in parts]


def _of_row(flat: Tensor, tree: PrefixTree, branch: Branch) -> Tensor:
    """Return the entries of a row's tokens up to the end of the branch. (groups, tokens, D)"""
    own = flat[branch.start : branch.stop]
    if branch.depth:
        own = torch.cat([flat.index_select(0, tree.rows[branch.row, : branch.depth]), own])
    return own.transpose(0, 1)


def _grouped(part: Tensor, key: Tensor) -> Tensor:
    """Concatenate the heads that share a key along the tokens. (T, heads, D) -> (groups, heads/groups·T, D)"""
    tokens, heads, width = part.shape
    groups = key.shape[1]
    return part.view(tokens, groups, heads // groups, width).permute(1, 2, 0, 3).reshape(groups, -1, width)


def _ungrouped(part: Tensor, query: Tensor) -> Tensor:
    """Undo ``_grouped``. (groups, heads/groups·T, D) -> (T, heads, D)"""
    groups, _, width = part.shape
    heads = query.shape[1]
    return part.view(groups, heads // groups, -1, width).permute(2, 0, 1, 3).reshape(-1, heads, width)


def _future(query: Tensor) -> Tensor:
    """Return −∞ where a query precedes a key of the same block, else 0. (QUERIES, QUERIES)"""
    return torch.full((QUERIES, QUERIES), float("-inf"), dtype=query.dtype, device=query.device).triu_(1)


def _weights(queries: Tensor, keys: Tensor, future: Tensor, scale: float, *, tokens: int) -> Tensor:
    """Return the attention of a block's queries to the row's tokens up to the block's end. (groups, ·tokens, seen)"""
    scores = matmul(queries, keys.mT, queries.dtype, future.dtype).mul_(scale)
    scores.view(len(scores), -1, tokens, scores.shape[2])[..., -tokens:].add_(future[:tokens, :tokens])
    return torch.softmax(scores, -1)
