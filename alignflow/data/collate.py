"""Collates token rows into padded batches, and takes rows out of a batch."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignflow.types import Example, Pair, Sequences

Batch = TypeVar("Batch")


def collate(examples: Sequence[Example]) -> Sequences:
    """Join each prompt with its response and pad on the right with token 0; all masks are False there.

    Raises:
        ValueError: a prompt or a response is empty, so there is nothing to predict.
    """
    for row, example in enumerate(examples):
        if not (example.prompt and example.response):
            raise ValueError(f"row {row} has an empty {'response' if example.prompt else 'prompt'}")
    longest = max(len(e.prompt) + len(e.response) for e in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    attention_mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    response_mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(examples):
        end = len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor(prompt + response)
        attention_mask[row, :end] = True
        response_mask[row, len(prompt) : end] = True
    return Sequences(input_ids, attention_mask, response_mask)


def collate_pairs(pairs: Sequence[Pair]) -> Sequences:
    """Return all chosen rows, then all rejected rows. 2B rows"""
    chosen = [Example(p.prompt, p.chosen) for p in pairs]
    return collate(chosen + [Example(p.prompt, p.rejected) for p in pairs])


def sequence_lengths(batch: Sequences) -> list[int]:
    """Return the number of real tokens of each row."""
    lengths: list[int] = batch.attention_mask.sum(1).tolist()
    return lengths


def take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return some rows of a record of tensors, without the columns that contain only padding.

    Works on any frozen record with one ``Sequences`` field (or on ``Sequences``) and tensors of shape (B,),
    (B, S) or (B, S-1), of which some may be None.
    """
    whole = batch if isinstance(batch, Sequences) else next(v for v in _values(batch) if isinstance(v, Sequences))
    index = torch.tensor(rows, device=whole.input_ids.device)
    longest = int(whole.attention_mask[index].sum(1).max())
    cut = whole.input_ids.shape[1] - longest
    result: Batch = _take(batch, index, cut)
    return result


def _values(batch: Any) -> list[Any]:
    return [getattr(batch, f.name) for f in fields(batch)]


def _take(value: Any, index: Tensor, cut: int) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(None if v is None else _take(v, index, cut) for v in _values(value)))
    rows = value[index]
    return rows[:, : rows.shape[1] - cut] if rows.dim() == 2 else rows
