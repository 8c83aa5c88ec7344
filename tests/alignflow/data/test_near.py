"""Near duplicates are found, and prompts that only look similar are not."""

import json
from itertools import product
from pathlib import Path

import pytest

from alignflow.data.near import matches, similarity, sketches, words_of

LONG = "Describe in a few words how a bridge carries the weight of the cars that drive over it every day"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def found(held_out: list[str], others: list[str], threshold: float = 0.8) -> list[tuple[int, int, float]]:
    texts = {True: [words_of(user(t)) for t in held_out], False: [words_of(user(t)) for t in others]}
    return matches(
        sketches(texts[True]), sketches(texts[False]), text_of=lambda out, row: texts[out][row], threshold=threshold
    )


def test_similarity_is_the_share_of_common_runs_of_five_characters():
    """abcdef: abcde, bcdef. abcdeg: abcde, bcdeg. One of three runs is common."""
    assert similarity("abcdef", "abcdeg") == pytest.approx(1 / 3)
    assert similarity("abc", "abc") == 1
    assert similarity("abc", "abd") == 0
    assert similarity("abcdefgh1", "abcdefgh2") == 0


def test_case_and_punctuation_make_no_difference_and_only_the_user_counts():
    turns = [{"role": "system", "content": "Be brief."}, *user("Why?!"), {"role": "assistant", "content": "So."}]
    assert words_of([*turns, *user(" And  then ")]) == "why and then"


def test_a_changed_word_in_a_long_prompt_is_found_with_its_partner():
    other = LONG.replace("every day", "each day")
    ((row, held_out, alike),) = found(["Something else", LONG], ["Who are you?", other])
    assert (row, held_out) == (1, 1)
    assert 0.8 <= alike < 1


def test_equal_words_have_similarity_one():
    assert found([LONG], [LONG.upper() + "?"]) == [(0, 0, 1.0)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("What is the difference between a frog and a toad?", "What is the difference between a violin and a viola?"),
        ("Why is the sky blue?", "Why is the sea blue?"),
        ("How do magnets work?", "How do engines work?"),
        ("What is 11?", "What is 1?"),
        (f"{LONG} in 1998", f"{LONG} in 1999"),
    ],
)
def test_short_questions_that_differ_in_their_telling_word_are_not_alike(one: str, other: str):
    assert found([one], [other]) == []


def test_nothing_held_out_and_nothing_else_match_nothing():
    assert found([], [LONG]) == found([LONG], []) == []


def test_no_two_prompts_of_the_bundled_set_are_called_alike_unless_they_are():
    lines = (Path(__file__).parents[3] / "data/preferences.jsonl").read_text().splitlines()
    prompts = sorted({json.loads(line)["prompt"] for line in lines})
    half = len(prompts) // 2
    assert all(alike >= 0.8 for _, _, alike in found(prompts[:half], prompts[half:]))
    assert len(found(prompts[:half], prompts[half:])) <= len(prompts) // 100


def test_every_pair_above_the_threshold_is_found():
    """Texts of twenty letters with one replaced at each end, in the middle or nowhere; checked against all pairs."""
    words = "the quick brown fox jumps over a lazy dog while seven small birds look on from the old garden wall"
    texts = [words[:i] + "#" + words[i + 1 :] for i in range(0, len(words), 3)]
    held_out, others = texts[::2], texts[1::2]
    expected = {j for i, j in product(range(len(held_out)), range(len(others)))
                if similarity(*(words_of(user(t)) for t in (held_out[i], others[j]))) >= 0.8}  # fmt: skip
    assert {row for row, _, _ in found(held_out, others)} == expected
