"""Batches of token rows."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignflow.data.collate import collate, collate_pairs, sequence_lengths, take_rows
from alignflow.loops.by_rows import by_rows
from alignflow.loops.order import micro_batches
from alignflow.types import Example, Pair, Sequences
from tests.close import EXACT, close
from tests.toy import enough, rows


def test_collate_pads_on_the_right_and_masks_by_length():
    batch = collate([Example((7, 8), (9,)), Example((1,), (2, 3, 4))])
    assert batch.input_ids.tolist() == [[7, 8, 9, 0], [1, 2, 3, 4]]
    assert batch.attention_mask.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.response_mask.tolist() == [[False, False, True, False], [False, True, True, True]]
    assert sequence_lengths(batch) == [3, 4]


def test_pairs_give_all_chosen_rows_and_then_all_rejected_rows():
    batch = collate_pairs([Pair((1,), (2,), (3,)), Pair((4,), (5,), (6,))])
    assert batch.input_ids.tolist() == [[1, 2], [4, 5], [1, 3], [4, 6]]


@dataclass(frozen=True)
class Record:
    numbers: Tensor
    sequences: Sequences
    per_token: Tensor


def test_taking_rows_cuts_padding_off_every_field():
    """Lengths 5, 2, 3: rows 2 and 1 need 3 columns, and 2 of a (B, S-1) tensor."""
    batch = rows([(2, 3), (1, 1), (2, 1)])
    record = Record(torch.tensor([0, 1, 2]), batch, torch.arange(12).view(3, 4))
    part = take_rows(record, [2, 1])
    assert part.numbers.tolist() == [2, 1]
    assert part.per_token.tolist() == [[8, 9], [4, 5]]
    assert part.sequences.input_ids.shape == (2, 3)
    assert take_rows(batch, [0]).input_ids.tolist() == batch.input_ids[:1].tolist()


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), budget=st.integers(16, 120))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int):
    chosen = list(range(0, len(lengths), 2))
    groups = micro_batches(lengths, chosen, budget)
    assert sorted(row for group in groups for row in group) == chosen
    for group in groups:
        assert len(group) == 1 or sum(lengths[row] for row in group) <= budget


def test_rows_of_one_prompt_lie_side_by_side_and_pay_for_it_once():
    """Two prompts of 10 and 4 tokens: 10 + 3 + 2 and 4 + 5 + 1 = 25 tokens for four rows of 37."""
    prompts = [[*range(10)], [*range(4)], [*range(10)], [*range(4)]]
    lengths = [13, 9, 12, 5]
    assert micro_batches(lengths, range(4), 25, prompts) == [[0, 2, 1, 3]]
    assert micro_batches(lengths, range(4), 24, prompts) == [[0, 2, 1], [3]]
    assert micro_batches(lengths, range(4), 15, prompts) == [[0, 2], [1, 3]]
    assert micro_batches(lengths, range(4), 25) == [[0, 2], [1, 3]]


def test_rows_repeated_in_a_batch_are_kept():
    assert micro_batches([3, 4], [0, 0, 1], 100) == [[1, 0, 0]]


@pytest.mark.parametrize("budget", [16, 24, 10_000])
def test_by_rows_puts_results_back_in_order_whatever_the_budget(budget: int):
    batch = rows([(2, 3), (9, 1), (1, 1), (4, 4)])
    sums = by_rows(lambda b: b.input_ids.sum(1).float(), batch, enough(budget))
    close(sums, batch.input_ids.sum(1), EXACT)
    tokens = by_rows(lambda b: b.input_ids[:, 1:].float(), batch, enough(budget), columns=9)
    close(tokens, batch.input_ids[:, 1:], EXACT)


def test_by_rows_needs_no_gradient():
    weight = torch.ones(1, requires_grad=True)
    assert not by_rows(lambda b: weight.expand(len(b.input_ids)), rows([(1, 1)]), enough(16)).requires_grad
