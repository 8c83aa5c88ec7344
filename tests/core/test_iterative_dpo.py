"""Shards of prompts and pairs from scored answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignflow.algorithms.iterative_dpo import choose_pair, shard_of


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 60), shards=st.integers(1, 9), seed=st.integers(0, 5))
def test_shards_are_disjoint_and_cover_all_prompts(count: int, shards: int, seed: int):
    cut = [shard_of(count, shard=i, of=shards, seed=seed) for i in range(1, shards + 1)]
    assert sorted(row for part in cut for row in part) == list(range(count))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_a_shard_depends_on_the_seed_and_on_nothing_else():
    assert shard_of(30, shard=2, of=3, seed=1) == shard_of(30, shard=2, of=3, seed=1)
    assert shard_of(30, shard=2, of=3, seed=1) != shard_of(30, shard=2, of=3, seed=2)


def test_the_best_is_paired_with_the_worst():
    choice = choose_pair([0.1, 0.9, -0.5, 0.2], ["a", "b", "c", "d"], min_margin=0.5)
    assert (choice.best, choice.worst, choice.dropped) == (1, 2, None)


@pytest.mark.parametrize(
    ("scores", "texts", "reason"),
    [
        ([1.0, 1.0, 1.0], ["a", "b", "c"], "tie"),
        ([1.0, 0.0], [" same", "same\n"], "equal texts"),
        ([1.0, 0.75], ["a", "b"], "margin too small"),
        ([1.0, 0.5], ["a", "b"], None),  # 0.5 is the least that counts
    ],
)
def test_ties_equal_texts_and_small_margins_give_no_pair(scores: list[float], texts: list[str], reason: str | None):
    assert choose_pair(scores, texts, min_margin=0.5).dropped == reason


def test_a_tie_gives_no_pair_even_without_a_margin():
    assert choose_pair([2.0, 2.0], ["a", "b"], min_margin=0.0).dropped == "tie"
