"""The whole preparation with rows of every kind: no prompt on two sides, every row counted, any order of rows."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignflow.data.encoding import encode_prompt, encode_response
from alignflow.data.preparation import Plan, prepare, report
from alignflow.data.rows import Message, Row
from alignflow.data.sources import BROKEN_JSON, Fault
from alignflow.data.split import Side
from alignflow.data.survey import Ruler
from alignflow.models.base import identify
from alignflow.models.load import load_tokenizer
from tests.tiny import EOS

WORDS = Ruler(None, 1, 1, seed=1)
PLAN = Plan(validation_fraction=0.2, judge_fraction=0.3, test_fraction=0.2, near_duplicate_threshold=0.8)


def turn(*texts: str) -> tuple[Message, ...]:
    return tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))


def row(
    prompt: str | tuple[Message, ...], chosen: str | None = None, rejected: str | None = None, number: int = 1
) -> Row:
    return Row(turn(prompt) if isinstance(prompt, str) else prompt, chosen, rejected, source="f", number=number)


def prepared(
    rows: Iterable[Row | Fault], *, ruler: Ruler = WORDS, plan: Plan = PLAN, workers: int = 1
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Return the rows of each side and the report."""
    with TemporaryDirectory() as folder:
        found = prepare(rows, ruler, plan, Path(folder), workers=workers)
        sides = {side.name.lower(): [json.loads(line) for line in found.lines(side)] for side in Side}
        return sides, report(found)


def reasons(said: dict[str, Any]) -> dict[str, tuple[int, list[str]]]:
    return {f["reason"]: (f["rows"], f["examples"]) for f in said["findings"]}


def everything(sides: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [r for rows in sides.values() for r in rows]


PROMPT = st.sampled_from([f"{topic} of {place}" for topic in ("history", "food", "language", "rivers", "birds")
                          for place in ("Peru", "Japan", "Kenya", "Norway", "Oman", "Chile")])  # fmt: skip
ANSWER = st.sampled_from(["good", "bad", "fair"])
TURNS = st.one_of(
    PROMPT.map(turn),
    st.tuples(PROMPT, ANSWER, PROMPT).map(lambda parts: turn(*parts)),
    PROMPT.map(lambda p: ({"role": "system", "content": "be kind"}, *turn(p))),
)
ROW = st.builds(row, TURNS, st.none() | ANSWER, st.none() | ANSWER)
ROWS = st.lists(ROW | st.just(Fault("f", 1, BROKEN_JSON)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_no_prompt_and_no_opening_is_on_two_sides(rows: list[Row | Fault]):
    sides, _ = prepared(rows)
    for key in (lambda r: r["prompt_id"], lambda r: next(m["content"] for m in r["messages"] if m["role"] == "user")):
        seen = [{key(r) for r in side} for side in sides.values()]
        assert sum(map(len, seen)) == len(set().union(*seen))


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_every_row_that_was_read_is_accounted_for(rows: list[Row | Fault]):
    sides, said = prepared(rows)
    assert said["rows"] == len(rows) == said["used"] + said["dropped"]
    assert said["dropped"] == sum(f["rows"] for f in said["findings"])
    given = {(r.prompt_id, r.chosen, r.rejected) for r in rows if isinstance(r, Row)}
    joined = sum((one["prompt_id"], one["chosen"], one["rejected"]) not in given for one in everything(sides))
    assert said["used"] == len(everything(sides)) + joined + said["unpaired"]  # two rows went into each joined pair


def content(sides: dict[str, list[dict[str, Any]]]) -> dict[str, list[tuple[str, ...]]]:
    return {
        s: sorted((r["prompt_id"], str(r["chosen"]), str(r["rejected"])) for r in rows) for s, rows in sides.items()
    }


@settings(max_examples=60, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_side(rows: list[Row | Fault], shuffler: random.Random):
    turned = list(rows)
    shuffler.shuffle(turned)
    (sides, said), (other, also) = prepared(rows), prepared(turned)
    assert content(sides) == content(other)
    assert {r: n for r, (n, _) in reasons(said).items()} == {r: n for r, (n, _) in reasons(also).items()}


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS)
def test_rows_that_are_added_move_nobody_to_another_side(rows: list[Row | Fault], more: list[Row | Fault]):
    before, after = prepared(rows)[0], prepared([*rows, *more])[0]
    home = {r["prompt_id"]: side for side, found in after.items() for r in found}
    for side, found in before.items():
        assert all(home.get(r["prompt_id"], side) == side for r in found)


def test_workers_change_not_one_byte():
    rows: list[Row | Fault] = []
    for i in range(2500):
        rows.append(Fault("f", i, BROKEN_JSON) if i % 97 == 0 else row(f"prompt {i % 1800}", f"a{i}", f"b{i % 5}", i))
    assert prepared(rows) == prepared(rows, workers=2)


def test_each_reason_is_counted_with_its_rows():
    sides, said = prepared(
        [
            row("one", "good", "bad", 1),
            Fault("f", 2, BROKEN_JSON),
            row("one", "good", "bad", 3),
            row("two", "same", "same", 4),
            row("three", "x", "y", 5),
            row("three", "y", "x", 6),
            Fault("f", 7, "chosen is not a text"),
        ]
    )
    assert reasons(said) == {
        "broken": (1, ["2"]),
        "duplicate": (1, ["3"]),
        "identical": (1, ["4"]),
        "contradictory": (2, ["5", "6"]),
        "wrong_type": (1, ["7"]),
    }
    assert [r["number"] for r in everything(sides)] == [1]


def test_rows_of_several_sources_are_named_with_theirs():
    _, said = prepared([Fault("a.jsonl", 2, BROKEN_JSON), Fault("b.jsonl", 2, BROKEN_JSON)])
    assert reasons(said) == {"broken": (2, ["a.jsonl:2", "b.jsonl:2"])}
    assert [(s["source"], s["rows"], s["used"]) for s in said["sources"]] == [("a.jsonl", 1, 0), ("b.jsonl", 1, 0)]


def test_thumbs_are_paired_by_prompt_and_what_is_left_over_is_told():
    sides, said = prepared(
        [
            row("one", None, "bad", 1),
            row("one", "good", None, 2),
            row("one", "better", None, 3),
            row("two", None, "b", 4),
        ]
    )
    found = {(r["chosen"], r["rejected"]) for r in everything(sides) if r["prompt"] == "one"}
    assert found in ({("good", "bad"), ("better", None)}, {("good", None), ("better", "bad")})
    assert (said["used"], said["dropped"]) == (4, 0)
    assert (
        sum(c["pairs"] for c in said["sides"].values()) == sum(c["demonstrations"] for c in said["sides"].values()) == 1
    )


def openings(side: str, count: int) -> list[str]:
    """Return long prompts that the split puts on a side."""
    texts = [
        f"Tell me in two or three short sentences what the number {i:05d} has to do with old maps" for i in range(400)
    ]
    sides, _ = prepared([row(t) for t in texts], plan=Plan(0.2, 0.3, 0.2, 1.0))
    return [r["prompt"] for r in sides[side]][:count]


@pytest.mark.parametrize("side", ["validation", "test"])
def test_a_training_prompt_that_is_almost_held_out_is_dropped_with_all_its_rows_and_the_pair_is_shown(side: str):
    (held_out,) = openings(side, 1)
    near = next(
        text for i in range(99) if prepared([row(text := f"{held_out}, please{' now' * i}")])[0]["train"]
    )  # the split puts this one elsewhere
    rows = [row(near, "a", "b", 1), row(held_out, "a", "b", 2), row(near, "a", "c", 3)]
    sides, said = prepared(rows)
    assert [r["number"] for r in everything(sides)] == [2]
    assert reasons(said) == {"near_duplicate": (2, ["1", "3"])}
    (pair,) = said["near_duplicates"]
    assert (pair["row"], pair["held_out_row"], pair["held_out_prompt"]) == ("1", "2", held_out)


def test_a_bad_answer_alone_is_trained_on_or_its_prompt_is_held_out():
    """None is without use: on the training side it waits for kto, on another side its prompt is one to answer."""
    (held_out,) = openings("validation", 1)
    near = next(text for i in range(99) if prepared([row(text := f"{held_out}, please{' now' * i}")])[0]["train"])
    _, said = prepared([row(near, None, "b", 1), row(held_out, "a", "b", 2)])
    assert reasons(said) == {"near_duplicate": (1, ["1"])}
    assert said["unpaired"] == 0
    sides, said = prepared([row(near, "a", "b", 1), row(held_out, None, "b", 2)])
    assert [r["number"] for r in sides["validation"]] == [2]
    assert reasons(said) == {"near_duplicate": (1, ["1"])}
    sides, said = prepared([row(near, None, "b", 1)])
    assert everything(sides) == []
    assert (said["used"], said["unpaired"], said["dropped"]) == (1, 1, 0)


def test_the_same_words_on_both_sides_are_told_as_such():
    (held_out,) = openings("validation", 1)
    other = next(text for i in range(1, 99) if prepared([row(text := held_out + "?" * i)])[0]["train"])
    _, said = prepared([row(held_out, number=1), row(other, number=2)])
    assert reasons(said) == {"both_sides": (1, ["2"])}


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(identify(str(tiny), None, converted=tiny))


def test_lengths_are_those_of_the_encoded_texts(tokenizer: Any):
    ruler = Ruler(tokenizer, 99, 99, seed=1)
    talks = [turn("hi"), turn(f"a{EOS}b", "yes", "so?")]
    assert ruler.prompt_lengths(talks) == [len(encode_prompt(tokenizer, talk)) for talk in talks]
    texts = ["yes", f"a{EOS}b", "maybe so"]
    assert ruler.response_lengths(texts) == [len(encode_response(tokenizer, text)) for text in texts]


def test_what_does_not_fit_is_dropped_and_one_token_less_is_not(tokenizer: Any):
    """The tiny tokenizer has one token per letter; the template adds to prompts, the end to answers."""
    fits = len(encode_prompt(tokenizer, turn("1234")))
    _, said = prepared(
        [row("1234", "abc", "d", 1), row("12345", "a", "b", 2), row("123", "abcd", "e", 3), row("12", "a", "abcd", 4)],
        ruler=Ruler(tokenizer, fits, 4, seed=1),
    )
    assert reasons(said) == {"prompt_too_long": (1, ["2"]), "response_too_long": (2, ["3", "4"])}


def test_a_text_that_spells_a_control_token_is_kept_and_told(tokenizer: Any):
    sides, said = prepared([row(f"what is {EOS}?", "a", "b", 7)], ruler=Ruler(tokenizer, 99, 99, seed=1))
    assert len(everything(sides)) == 1
    assert [(w["rows"], w["examples"]) for w in said["warnings"]] == [(1, ["7"])]


def test_the_longest_response_is_that_of_a_row_that_is_kept(tokenizer: Any):
    """A token a letter and one for the end; nine letters do not fit; a bad answer joined to a good one counts."""
    ruler = Ruler(tokenizer, 99, 7, seed=1)
    _, said = prepared([row("one", "ab", "abcd", 1), row("two", "a", "123456789", 2)], ruler=ruler)
    assert said["longest_response"] == 5
    _, said = prepared([row("one", "a", None, 1), row("one", None, "abcde", 2)], ruler=ruler)
    assert said["longest_response"] == 6
    assert prepared([])[1]["longest_response"] == 0


def test_the_pull_of_length_counts_joined_pairs_with_the_partners_answer():
    """Chosen has two words; the bad answer to the same prompt has five."""
    _, said = prepared([row("one", "two words", None, 1), row("one", None, "these are as many words", 2)])
    assert said["statistics"]["length_bias"]["difference"] == -3
    assert said["statistics"]["unit"] == "words"
