"""Shards of prompts and pairs from scored answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignflow.algorithms.iterative_dpo import Choice, choose_pair, shard_of


@settings(max_examples=50, deadline=None)
@given(count=st.integers(0, 60), shards=st.integers(1, 9), seed=st.integers(0, 5))
def test_shards_are_disjoint_and_cover_all_prompts(count: int, shards: int, seed: int):
    cut = [shard_of(count, shard=i, of=shards, seed=seed) for i in range(1, shards + 1)]
    assert sorted(row for part in cut for row in part) == list(range(count))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_the_first_few_of_a_shard_come_from_all_over_the_data():
    """The mean of 60 fair draws below 1200 is 600 +- 3 * 346 / sqrt(60), about 134."""
    first = shard_of(1200, shard=2, of=3, seed=1)[:60]
    assert abs(sum(first) / 60 - 600) < 134


def test_a_shard_depends_on_the_seed_and_on_nothing_else():
    assert shard_of(30, shard=2, of=3, seed=1) == shard_of(30, shard=2, of=3, seed=1)
    assert shard_of(30, shard=2, of=3, seed=1) != shard_of(30, shard=2, of=3, seed=2)


def choose(scores: list[float | None], texts: list[str], min_margin: float = 0.5, penalty: float = 0.0) -> Choice:
    lengths = [len(text) for text in texts]
    return choose_pair(scores, texts, lengths, min_margin=min_margin, length_penalty=penalty)


def test_the_best_is_paired_with_the_worst():
    assert choose([0.1, 0.9, -0.5, 0.2], ["a", "b", "c", "d"]) == Choice(1, 2, None)


@pytest.mark.parametrize(
    ("scores", "texts", "reason"),
    [
        ([1.0, 1.0, 1.0], ["a", "b", "c"], "tie"),
        ([1.0, 0.0], [" same", "same\n"], "equal texts"),
        ([1.0, 0.75], ["a", "b"], "margin too small"),
        ([1.0, 0.5], ["a", "b"], None),  # 0.5 is the least that counts
        ([1.0, None], ["a", "b"], "fewer than two answers with a reward"),
        ([None, None], ["a", "b"], "fewer than two answers with a reward"),
        ([1.0, 0.0], ["", " "], "all answers empty"),
    ],
)
def test_what_teaches_nothing_gives_no_pair(scores: list[float | None], texts: list[str], reason: str | None):
    assert choose(scores, texts).dropped == reason


def test_a_tie_gives_no_pair_even_without_a_margin():
    assert choose([2.0, 2.0], ["a", "b"], min_margin=0.0).dropped == "tie"


def test_answers_without_a_reward_are_left_out():
    assert choose([None, 0.2, 3.0, -1.0, None], list("abcde")) == Choice(2, 3, None)


def test_an_empty_answer_may_be_the_worst_and_never_the_best():
    assert choose([5.0, 2.0, 1.0], ["", "b", "c"]) == Choice(1, 2, None)
    assert choose([-5.0, 2.0, 1.0], ["", "b", "c"]) == Choice(1, 0, None)
    assert choose([2.0, 1.0], ["", "b"]).dropped == "tie"  # the empty one would win: nothing is learned from it


def test_a_length_penalty_turns_the_choice_to_short_answers():
    """Scores 3, 2.5, 0 at 40, 10 and 5 tokens: less 0.05 a token they are 1, 2 and -0.25."""
    texts = ["x" * 40, "y" * 10, "z" * 5]
    assert choose([3.0, 2.5, 0.0], texts) == Choice(0, 2, None)
    assert choose([3.0, 2.5, 0.0], texts, penalty=0.05) == Choice(1, 2, None)


def test_tie_and_margin_are_of_the_corrected_scores():
    """1 and 1.5 at 10 and 20 tokens: equal at 0.05 a token, 0.4 apart at 0.01."""
    texts = ["x" * 10, "y" * 20]
    assert choose([1.0, 1.5], texts, penalty=0.05).dropped == "tie"
    assert choose([1.0, 1.5], texts, penalty=0.01).dropped == "margin too small"


def test_with_nothing_to_choose_both_places_are_the_first_answer():
    """The lineage of a round shows the texts at both places of a dropped pair too."""
    assert choose([None, 1.0], ["a", "b"]) == Choice(0, 0, "fewer than two answers with a reward")
    assert choose([1.0, 0.0], ["", " "]) == Choice(0, 0, "all answers empty")


def test_every_score_needs_a_length():
    with pytest.raises(ValueError, match="shorter"):
        choose_pair([1.0, 0.0], ["a", "b"], [1], min_margin=0.5, length_penalty=0.0)
