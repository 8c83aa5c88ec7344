"""Selects the rows of an optimiser step, and cuts them into micro-batches by a budget of tokens."""

import random
from collections.abc import Sequence
from functools import lru_cache

import torch

from alignflow import distributed
from alignflow.data.collate import collate, collate_pairs
from alignflow.optim import OptimisationConfig
from alignflow.types import Example, Pair, Sequences


def rows_of_step(total: int, config: OptimisationConfig, step: int) -> list[int]:
    """Return the rows of an optimiser step: epoch after epoch, each in its own order.

    A pure function of seed and step, so that an interrupted run continues with the same data.
    """
    rows: list[int] = []
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, total)
        rows.append(_order(total, config.seed, epoch)[place])
    return rows


@lru_cache(maxsize=2)
def _order(total: int, seed: int, epoch: int) -> list[int]:
    order = list(range(total))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


def pair_batches(
    pairs: Sequence[Pair], config: OptimisationConfig, step: int, budget: int, device: torch.device
) -> list[tuple[list[int], Sequences]]:
    """Return an optimiser step's micro-batches within a budget of tokens, on a device, with their pairs' indices."""
    lengths = [len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs]  # the prompt is computed once
    groups = micro_batches(lengths, rows_of_step(len(pairs), config, step), budget)
    return [(rows, collate_pairs([pairs[i] for i in rows]).to(device)) for rows in groups]


def example_batches(
    examples: Sequence[Example], config: OptimisationConfig, step: int, budget: int, device: torch.device
) -> list[Sequences]:
    """Return an optimiser step's micro-batches of prompts with one response, on a device."""
    lengths = [len(e.prompt) + len(e.response) for e in examples]
    groups = micro_batches(lengths, rows_of_step(len(examples), config, step), budget)
    return [collate([examples[i] for i in group]).to(device) for group in groups]


def micro_batches(
    lengths: Sequence[int], rows: Sequence[int], budget: int, prompts: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """Cut rows into groups within a budget of tokens; rows of one prompt are adjacent, long rows come first.

    The number of tokens is that of tokens to compute: without padding, and with each prompt once per group. A row
    longer than the budget is its own group. With several processes, each gets a share of the rows with about the same
    number of tokens, and this function returns the groups of this process's share, which may be empty.

    Args:
        lengths: number of real tokens of every row of the data, prompt included.
        rows: indices into ``lengths``: the optimiser batch.
        budget: maximum number of tokens of a group.
        prompts: token ids of every row's prompt; None: rows share no tokens.
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
