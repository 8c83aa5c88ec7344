"""Reading, gating and splitting preferences; batches."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignflow.data.collate import by_rows, collate, collate_pairs, micro_batches, sequence_lengths, take_rows
from alignflow.data.preferences import gate, read, split
from alignflow.data.rows import DataError
from alignflow.types import Example, Pair, Sequences
from tests.close import EXACT, close
from tests.toy import rows


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
        assert len(group) == 1 or max(lengths[row] for row in group) * len(group) <= budget


def test_rows_repeated_in_a_batch_are_kept():
    assert micro_batches([3, 4], [0, 0, 1], 100) == [[1, 0, 0]]


@pytest.mark.parametrize("budget", [16, 24, 10_000])
def test_by_rows_puts_results_back_in_order_whatever_the_budget(budget: int):
    batch = rows([(2, 3), (9, 1), (1, 1), (4, 4)])
    sums = by_rows(lambda b: b.input_ids.sum(1).float(), batch, budget)
    close(sums, batch.input_ids.sum(1), EXACT)
    tokens = by_rows(lambda b: b.input_ids[:, 1:].float(), batch, budget, columns=9)
    close(tokens, batch.input_ids[:, 1:], EXACT)


def test_by_rows_needs_no_gradient():
    weight = torch.ones(1, requires_grad=True)
    assert not by_rows(lambda b: weight.expand(len(b.input_ids)), rows([(1, 1)]), 16).requires_grad


def write(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(texts))
    return path


def row(prompt: Any = "p", chosen: Any = "good", rejected: Any = "bad") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "more": 1}


def test_what_cannot_be_used_is_counted_with_its_line_and_reason(tmp_path: Path):
    path = write(
        tmp_path / "rows.jsonl",
        [
            row(),
            b"",  # a blank line is no row but has a number
            row(),  # 3
            row(chosen="bad", rejected="good"),  # 4
            b"{broken",  # 5
            b"[1]",  # 6
            row(chosen=None),  # 7
            row(rejected="  "),  # 8
            row(prompt="q", chosen=" same ", rejected="same"),  # 9
            b'{"prompt": "\xff"}',  # 10
            row(prompt="separators \u2028 and \x85 stay"),  # 11
        ],
    )
    kept, dropped = read(path)
    assert [(r.number, r.prompt) for r in kept] == [(1, "p"), (11, "separators \u2028 and \x85 stay")]
    assert [(d.row, d.reason) for d in dropped] == [
        (3, "repeated row"),
        (4, "contradicts an earlier row"),
        (5, "broken JSON"),
        (6, "not an object"),
        (7, "prompt, chosen or rejected is missing or not a text"),
        (8, "empty text"),
        (9, "chosen equals rejected"),
        (10, "not UTF-8"),
    ]


def test_a_missing_file_is_told_with_the_key_that_names_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"data\.path"):
        read(tmp_path / "none.jsonl")


def test_the_gate_counts_and_stops_above_the_threshold(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [row(), b"x", b"y", row(prompt="q")])
    _, dropped = read(path)
    assert gate(4, dropped, most=0.5, path=path) == {"broken JSON": 2}
    with pytest.raises(DataError, match=r"2 of 4 rows.*max_dropped_fraction(.|\n)*broken JSON \(rows 2, 3\)"):
        gate(4, dropped, most=0.49, path=path)


def test_a_file_without_usable_rows_stops(tmp_path: Path):
    with pytest.raises(DataError, match="no usable row of 0"):
        gate(0, [], most=1.0, path=tmp_path)


def test_rows_added_later_move_no_prompt_to_the_other_side():
    few, more = [f"prompt {i}" for i in range(200)], [f"prompt {i}" for i in range(1000)]
    before, after = (split(prompts, eval_fraction=0.2, seed=1) for prompts in (few, more))
    assert before == after & set(few)
    assert 0.15 < len(after) / 1000 < 0.25
    assert split(more, eval_fraction=0.2, seed=2) != after
    assert after < split(more, eval_fraction=0.3, seed=1)
