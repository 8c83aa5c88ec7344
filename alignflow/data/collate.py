"""Token rows to padded batches, and batches to micro-batches by a budget of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from alignflow import distributed
from alignflow.memory import Budget, fitting, part
from alignflow.types import Example, Pair, Sequences

Batch = TypeVar("Batch")


def collate(examples: Sequence[Example]) -> Sequences:
    """Join each prompt with its response and pad on the right with token 0, which no mask lets count.

    Raises:
        ValueError: a prompt or a response has no token, so nothing could be predicted.
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
    """Return the real tokens of each row."""
    lengths: list[int] = batch.attention_mask.sum(1).tolist()
    return lengths


def micro_batches(
    lengths: Sequence[int], rows: Sequence[int], budget: int, prompts: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """Cut rows, those of one prompt side by side and long ones first, into groups within a budget of tokens.

    Tokens are counted as they are computed: without padding, and a prompt once for all its rows in a group. A row
    longer than the budget makes a group of its own. Of several processes each gets groups of its own share of the rows,
    alike in tokens; there may be none.

    Args:
        lengths: real tokens of every row of the data, prompt included.
        rows: indices into ``lengths`` that make the optimiser batch.
        budget: most tokens of a group.
        prompts: tokens of every row's prompt; without them no row shares any.
    """
    order = sorted(rows, key=lambda row: (-lengths[row], row))
    of: dict[int, tuple[int, ...]] = {row: () if prompts is None else tuple(prompts[row]) for row in order}
    if prompts is not None:
        first = {of[row]: place for place, row in reversed(list(enumerate(order)))}
        order.sort(key=lambda row: first[of[row]])
    costs = [
        float(lengths[row] - (len(of[row]) if i and of[row] == of[order[i - 1]] else 0)) for i, row in enumerate(order)
    ]
    groups: list[list[int]] = []
    used = 0
    for row in distributed.mine(order, costs):
        known = len(of[row]) if groups and of[groups[-1][-1]] == of[row] else 0
        if groups and used + lengths[row] - known <= budget:
            groups[-1].append(row)
            used += lengths[row] - known
        else:
            groups.append([row])
            used = lengths[row]
    return groups


def take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return some rows of a record of tensors, with columns of nothing but padding cut off.

    Works on any frozen record with one ``Sequences`` field (or on ``Sequences``) and tensors of shape (B,),
    (B, S) or (B, S-1), of which some may be None.
    """
    whole = batch if isinstance(batch, Sequences) else next(v for v in _values(batch) if isinstance(v, Sequences))
    index = torch.tensor(rows, device=whole.input_ids.device)
    longest = int(whole.attention_mask[index].sum(1).max())
    cut = whole.input_ids.shape[1] - longest
    result: Batch = _take(batch, index, cut)
    return result


def by_rows(
    forward: Callable[[Sequences], Tensor], sequences: Sequences, budget: Budget, *, columns: int | None = None
) -> Tensor:
    """Run a forward in micro-batches without gradients, shared by all processes, and put its rows back in order.

    Args:
        forward: returns one row for each row of its batch: (b,) or (b, s-1).
        sequences: all rows. B
        budget: most tokens of a micro-batch; halved when memory runs out.
        columns: width of the result, e.g. S-1 with zeros past a row's end; None for one number a row.

    Returns:
        (B, columns) or (B,), float32, on the device of the sequences
    """
    size, lengths, prompts = len(sequences.input_ids), sequence_lengths(sequences), sequences.prompts()
    shape = (size,) if columns is None else (size, columns)
    result = torch.zeros(shape, device=sequences.input_ids.device)

    @torch.no_grad()
    def run(groups: Sequence[list[int]]) -> Tensor:
        for number, rows in enumerate(groups):
            with part(number):
                found = forward(take_rows(sequences, rows)).to(result.device)
            if columns is None:
                result[rows] = found
            else:
                result[rows, : found.shape[1]] = found
        return result

    mine = fitting(
        lambda most: micro_batches(lengths, range(size), most, prompts),
        run,
        lambda rows: sum(lengths[i] for i in rows),
        budget,
    )
    return distributed.sum_tensor(mine)  # a row of another process is 0 here


def _values(batch: Any) -> list[Any]:
    return [getattr(batch, f.name) for f in fields(batch)]


def _take(value: Any, index: Tensor, cut: int) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(*(None if v is None else _take(v, index, cut) for v in _values(value)))
    rows = value[index]
    return rows[:, : rows.shape[1] - cut] if rows.dim() == 2 else rows
