"""Rows out of every form, the reason of every fault, and real files."""

import csv
import gzip
import json
import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from alignflow.data.formats import Pairs, layout_of, mix, read_rows
from alignflow.data.forms.faults import BAD_LABEL, BAD_WINNER
from alignflow.data.forms.judgements import READERS
from alignflow.data.forms.table import FORMS
from alignflow.data.rows import DataError, Message, Row
from alignflow.data.sources import Fault, Source

REAL = Path(__file__).parents[3].parent / "shared" / "data"


def said(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """Return turns of user and assistant in alternation."""
    first: tuple[Message, ...] = () if system is None else ({"role": "system", "content": system},)
    turns: list[Message] = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]
    return (*first, *turns)


def chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    return [dict(turn) for turn in said(*texts, system=system)]  # type: ignore[arg-type]


def share(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in said(*texts, system=system)]


def one(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def written(path: Path, *contents: Any) -> Source:
    path.write_text("".join(json.dumps(content) + "\n" for content in contents))
    return Source(str(path))


SOUND: dict[str, dict[str, Any]] = {
    "preference": {"prompt": "p", "chosen": "x", "rejected": "y", "margin": 1, "answer": "4", "system": "s"},
    "step_pair": {"prompt": "p", "prefix": "so\n", "chosen": "x", "rejected": "y"},
    "ranked": {"prompt": "p", "responses": ["x", "y"], "scores": [2, 1]},
    "compared": {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "a"},
    "thumbs": {"prompt": "p", "response": "x", "label": True},
    "choices": {"question": "p", "choices": ["x", "y", "z"], "answer": "B"},
    "prompt_answer": {"prompt": "p", "answer": "4"},
    "demonstrations": {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "x"}]},
    "prompts": {"prompt": "p"},
    "tree": {"prompt": {"role": "prompter", "text": "p", "replies": []}},
}
"""A record of each form; one of no use follows, whose reason is looked at."""


def parsed(
    content: Any, tmp_path: Path, *, form: str = "auto", pairs: Pairs = "all", after: str = ""
) -> list[Row | str]:
    """Return the rows of one record without their origin, or the reason of its fault.

    Args:
        after: form of sound records that tell the columns.
    """
    before = [SOUND[after]] * 3 if after else []
    found = list(read_rows(written(tmp_path / "a.jsonl", *before, content), form=form, pairs=pairs))
    return [
        item.reason
        if isinstance(item, Fault)
        else Row(item.messages, item.chosen, item.rejected, item.margin, item.answer, item.prefix)
        for item in found
        if item.number > len(before)
    ]


def form_of(source: Source) -> str | None:
    layout = layout_of(source)
    return layout.form if layout else None


PAIR = {"chosen": "good", "rejected": "bad"}
GOOD: list[tuple[str, dict[str, Any], Row]] = [
    # texts, stripped
    ("preference", {"prompt": " p\n", "chosen": "good ", "rejected": "\tbad"}, Row(said("p"), "good", "bad")),
    ("preference", {"question": "p", **PAIR}, Row(said("p"), "good", "bad")),
    ("preference", {"instruction": "p", "input": "more", **PAIR}, Row(said("p\nmore"), "good", "bad")),
    ("preference", {"instruction": "p", "input": "", **PAIR}, Row(said("p"), "good", "bad")),
    # the next step after a prefix, white space as it is written
    (
        "step_pair",
        {"prompt": " p\n", "prefix": "so\n", "chosen": "good\n", "rejected": "bad ", "answer": 42, "margin": 1},
        Row(said("p"), "good\n", "bad ", 1.0, "42", "so\n"),
    ),
    ("step_pair", {"question": "p", "prefix": "", **PAIR}, Row(said("p"), "good", "bad", prefix="")),
    ("step_pair", {"prompt": "p", "prefix": None, **PAIR}, Row(said("p"), "good", "bad")),
    (
        "step_pair",
        {"prompt": "p", "initial_reason_steps": "Step 1: a\nStep 2:", "chosen": " b", "rejected": " c", "dataset": "d"},
        Row(said("p"), " b", " c", prefix="Step 1: a\nStep 2:"),
    ),
    # what goes along
    ("preference", {"prompt": "p", **PAIR, "system": "s"}, Row(said("p", system="s"), "good", "bad")),
    ("preference", {"prompt": "p", **PAIR, "system": ""}, Row(said("p"), "good", "bad")),
    ("preference", {"prompt": "p", **PAIR, "margin": 2}, Row(said("p"), "good", "bad", 2.0)),
    ("preference", {"prompt": "p", **PAIR, "margin": "0.5"}, Row(said("p"), "good", "bad", 0.5)),
    ("preference", {"prompt": "p", **PAIR, "margin": None}, Row(said("p"), "good", "bad")),
    (
        "preference",
        {"prompt": "p", **PAIR, "score_chosen": 8.5, "score_rejected": 6},
        Row(said("p"), "good", "bad", 2.5),
    ),
    ("preference", {"prompt": "p", **PAIR, "score_chosen": 8.5}, Row(said("p"), "good", "bad")),
    ("preference", {"prompt": "p", **PAIR, "answer": " 42 "}, Row(said("p"), "good", "bad", 0.0, "42")),
    ("preference", {"prompt": "p", **PAIR, "answer": 42}, Row(said("p"), "good", "bad", 0.0, "42")),
    ("preference", {"prompt": "p", **PAIR, "answer": 42.0}, Row(said("p"), "good", "bad", 0.0, "42")),
    ("preference", {"prompt": "p", **PAIR, "answer": ""}, Row(said("p"), "good", "bad")),
    (
        "preference",
        {"prompt": "p", **PAIR, "system": "s", "tools": [{"name": "add"}]},
        Row(said("p", system='s\n\nTools:\n[{"name": "add"}]'), "good", "bad"),
    ),
    (
        "preference",
        {"prompt": "p", **PAIR, "tools": "add(a, b)"},
        Row(said("p", system="Tools:\nadd(a, b)"), "good", "bad"),
    ),
    # chat
    ("preference", {"prompt": chat("p", "a", "q"), **PAIR}, Row(said("p", "a", "q"), "good", "bad")),
    (
        "preference",
        {"prompt": chat("p"), "chosen": one("good"), "rejected": [one("bad")]},
        Row(said("p"), "good", "bad"),
    ),
    (
        "preference",
        {"prompt": share("p", system="s"), "chosen": {"from": "gpt", "value": "good"}, "rejected": "bad"},
        Row(said("p", system="s"), "good", "bad"),
    ),
    ("preference", {"prompt": chat("p", system=" "), **PAIR}, Row(said("p"), "good", "bad")),
    # the prompt within the answers, as UltraFeedback has it
    (
        "preference",
        {"prompt": "p", "chosen": chat("p", "good"), "rejected": chat("p", "bad")},
        Row(said("p"), "good", "bad"),
    ),
    (
        "preference",
        {"prompt": "p", "chosen": chat("p", "a", "q", "good"), "rejected": chat("p", "a", "q", "bad")},
        Row(said("p", "a", "q"), "good", "bad"),
    ),
    (
        "preference",
        {"prompt": "q", "chosen": chat("p", "a", "q", "good", system="s"), "rejected": "bad"},
        Row(said("p", "a", "q", system="s"), "good", "bad"),
    ),
    (
        "preference",
        {"prompt": chat("p", system="s"), "chosen": chat("p", "good"), "rejected": chat("p", "bad")},
        Row(said("p", system="s"), "good", "bad"),
    ),
    (
        "preference",
        {"chosen": chat("p", "a", "q", "good", system="s"), "rejected": chat("p", "a", "q", "bad", system="s")},
        Row(said("p", "a", "q", system="s"), "good", "bad"),
    ),
    # messages as chat services write them
    (
        "preference",
        {
            "prompt": [
                {"role": "developer", "content": "s"},
                {"role": "User", "content": [{"type": "text", "text": "p"}, {"type": "text", "text": "q"}]},
            ],
            **PAIR,
        },
        Row(said("p\nq", system="s"), "good", "bad"),
    ),
    (
        "preference",
        {
            "prompt": [
                {"role": "user", "content": "1+1, 2+2?"},
                {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
                {"role": "tool", "content": "2"},
                {"role": "tool", "content": "4"},
            ],
            **PAIR,
        },
        Row(said("1+1, 2+2?", '[{"name": "add"}]', "Tool result:\n2\n\nTool result:\n4"), "good", "bad"),
    ),
    (
        "preference",
        {
            "chosen": "\n\nHuman: Hi\n\nmy Human: is here \n\nAssistant: yes\n\nHuman: so\n\nAssistant: good",
            "rejected": "\n\nHuman: Hi\n\nmy Human: is here \n\nAssistant: yes\n\nHuman: so\n\nAssistant: bad\n\n1. x",
        },
        Row(said("Hi\n\nmy Human: is here", "yes", "so"), "good", "bad\n\n1. x"),
    ),
    (
        "preference",
        {
            "conversations": share("p", "a", "q", system="s"),
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        Row(said("p", "a", "q", system="s"), "good", "bad"),
    ),
    ("preference", {"conversations": share("p"), **PAIR, "system": "s"}, Row(said("p", system="s"), "good", "bad")),
    ("preference", {"messages": chat("p"), **PAIR}, Row(said("p"), "good", "bad")),
    (
        "preference",
        {
            "conversations": [
                {"from": "human", "value": "1+1?"},
                {"from": "function_call", "value": "add(1, 1)"},
                {"from": "observation", "value": "2"},
            ],
            **PAIR,
        },
        Row(said("1+1?", "add(1, 1)", "Tool result:\n2"), "good", "bad"),
    ),
    ("thumbs", {"prompt": "p", "response": "r", "label": True}, Row(said("p"), "r")),
    (
        "thumbs",
        {"prompt": chat("p", "a", "q"), "completion": [one("r")], "label": 0},
        Row(said("p", "a", "q"), None, "r"),
    ),
    (
        "prompt_answer",
        {"question": "q", "answer": "so 1+1=2\n#### 2"},
        Row(said("q"), "so 1+1=2\n#### 2", None, 0.0, "2"),
    ),
    ("prompt_answer", {"prompt": "q", "answer": "2"}, Row(said("q"), None, None, 0.0, "2")),
    ("prompt_answer", {"prompt": "q", "answer": 1800}, Row(said("q"), None, None, 0.0, "1800")),
    ("prompt_answer", {"prompt": "q", "answer": "a #### 2", "chosen": "b"}, Row(said("q"), "b", None, 0.0, "2")),
    ("prompt_answer", {"prompt": "q", "answer": "2", "rejected": "b"}, Row(said("q"), None, "b", 0.0, "2")),
    ("prompts", {"prompt": "p"}, Row(said("p"))),
    ("prompts", {"messages": chat("p", "a", "q", system="s")}, Row(said("p", "a", "q", system="s"))),
    ("demonstrations", {"prompt": "p", "chosen": "good"}, Row(said("p"), "good")),
    ("demonstrations", {"instruction": "p", "input": "more", "output": "good"}, Row(said("p\nmore"), "good")),
    ("demonstrations", {"messages": chat("p", "a", "q", "good")}, Row(said("p", "a", "q"), "good")),
    ("demonstrations", {"conversations": share("p", "good", system="s")}, Row(said("p", system="s"), "good")),
    ("demonstrations", {"text": "### Human: p\n### Assistant: good"}, Row(said("p"), "good")),
]


@pytest.mark.parametrize(("form", "content", "row"), GOOD)
def test_a_record_gives_its_row_forced_or_found_out(form: str, content: Any, row: Row, tmp_path: Path):
    assert parsed(content, tmp_path) == [row]
    assert form_of(Source(str(tmp_path / "a.jsonl"))) == form
    assert parsed(content, tmp_path, form=form) == [row]


RANKED: list[tuple[dict[str, Any], list[tuple[str, str, float]]]] = [
    ({"responses": ["a", "b", "c"], "scores": [1, 4, 2]}, [("b", "a", 3.0), ("b", "c", 2.0), ("c", "a", 1.0)]),
    ({"completions": ["a", "b"], "ranks": [2, 1]}, [("b", "a", 1.0)]),
    ({"answers": ["a", "b", "c"], "scores": [2.0, 2.0, 0.5]}, [("a", "c", 1.5), ("b", "c", 1.5)]),
    (
        {
            "responses": [
                {"response": "a", "overall_score": 1, "model": "m"},
                {"response": "b", "overall_score": "3.5"},
                {"response": "c", "overall_score": 0},
            ]
        },
        [("b", "c", 3.5), ("b", "a", 2.5), ("a", "c", 1.0)],
    ),
    ({"completions": [{"text": "a", "rank": 1}, {"text": "b", "rank": 3}]}, [("a", "b", 2.0)]),
]


@pytest.mark.parametrize(("content", "expected"), RANKED)
def test_responses_with_scores_give_all_pairs_or_the_widest(
    content: Any, expected: list[tuple[str, str, float]], tmp_path: Path
):
    rows = [Row(said("p"), better, worse, margin) for better, worse, margin in expected]
    assert parsed({"prompt": "p", **content}, tmp_path) == rows
    assert form_of(Source(str(tmp_path / "a.jsonl"))) == "ranked"
    assert parsed({"prompt": "p", **content}, tmp_path, pairs="best_worst") == rows[:1]


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]


FAULTS: list[tuple[str, Any, str]] = [
    ("preference", {"chosen": "good", "rejected": "bad"}, "prompt is missing"),
    ("preference", {"prompt": "p", "rejected": "bad"}, "chosen is missing"),
    ("preference", {"prompt": "p", "chosen": "good", "rejected": None}, "rejected is missing"),
    ("preference", {"prompt": "p", "chosen": 3, "rejected": "b"}, "chosen is neither a text nor chat messages"),
    ("preference", {"prompt": {"role": "user"}, **PAIR}, "chat turn without a role or a text"),
    ("preference", {"prompt": 3, **PAIR}, "prompt is neither a text nor chat messages"),
    (
        "preference",
        {"prompt": "[{'role': 'user', 'content': 'cut o", **PAIR},
        "chat messages written as a text that is cut off or broken",
    ),
    (
        "preference",
        {"prompt": chat("p"), "chosen": "Human: p\n\nAssistant: a\n\nAssistant: b", "rejected": "x"},
        "chat turns out of order",
    ),
    ("preference", {"prompt": "p", "chosen": "Human: p\n\nAssistant:", "rejected": "x"}, "empty text"),
    (
        "preference",
        {"prompt": "Human: p\n\nAssistant:", "chosen": "Human: q\n\nAssistant: a", "rejected": "x"},
        "prompt is not in the conversation",
    ),
    ("preference", {"prompt": "p", "chosen": " ", "rejected": "b"}, "empty text"),
    ("preference", {"prompt": "\n", **PAIR}, "empty text"),
    ("preference", {"prompt": [], **PAIR}, "empty text"),
    ("preference", {"prompt": [{"role": "user", "content": ""}], **PAIR}, "empty text"),
    ("preference", {"prompt": [{"role": "system", "content": ""}], **PAIR}, "empty text"),
    ("preference", {"prompt": "p", "chosen": "\ud800", "rejected": "b"}, "half of a surrogate pair in a text"),
    ("preference", {"prompt": ["p"], **PAIR}, "chat turn without a role or a text"),
    ("preference", {"prompt": [{"role": "user"}], **PAIR}, "chat turn without a role or a text"),
    ("preference", {"prompt": [{"content": "p"}], **PAIR}, "chat turn without a role or a text"),
    ("preference", {"prompt": [{"role": 1, "content": "p"}], **PAIR}, "chat turn without a role or a text"),
    ("preference", {"prompt": [{"role": "user", "content": ["p"]}], **PAIR}, "chat turn without a role or a text"),
    ("preference", {"prompt": turns("user", "narrator"), **PAIR}, "unknown chat role"),
    ("preference", {"prompt": turns("user", "user"), **PAIR}, "chat turns out of order"),
    ("preference", {"prompt": turns("assistant", "user"), **PAIR}, "chat turns out of order"),
    ("preference", {"prompt": turns("user", "system", "user"), **PAIR}, "chat turns out of order"),
    ("preference", {"prompt": turns("system", "system", "user"), **PAIR}, "chat turns out of order"),
    ("preference", {"prompt": turns("user", "assistant", "assistant", "user"), **PAIR}, "chat turns out of order"),
    ("preference", {"prompt": turns("user", "tool"), **PAIR}, "chat turns out of order"),
    ("preference", {"prompt": turns("user", "assistant"), **PAIR}, "prompt does not end with the user's turn"),
    ("preference", {"prompt": turns("system"), **PAIR}, "prompt does not end with the user's turn"),
    ("preference", {"prompt": "p", "chosen": turns("user"), "rejected": "b"}, "answer is not an assistant's turn"),
    (
        "preference",
        {"chosen": turns("user", "assistant", "user"), "rejected": turns("user", "assistant")},
        "answer is not an assistant's turn",
    ),
    (
        "preference",
        {"chosen": turns("user", "assistant", "assistant"), "rejected": turns("user", "assistant")},
        "chat turns out of order",
    ),
    (
        "preference",
        {"chosen": chat("p", "good"), "rejected": chat("q", "bad")},
        "chosen and rejected answer different prompts",
    ),
    (
        "preference",
        {"chosen": chat("p", "a", "q", "good"), "rejected": chat("p", "bad")},
        "chosen and rejected answer different prompts",
    ),
    ("preference", {"prompt": "q", "chosen": chat("p", "a"), "rejected": "b"}, "prompt is not in the conversation"),
    ("preference", {"prompt": "p", **PAIR, "margin": -0.5}, "margin is not a number of at least 0"),
    ("preference", {"prompt": "p", **PAIR, "margin": "high"}, "margin is not a number of at least 0"),
    ("preference", {"prompt": "p", **PAIR, "margin": True}, "margin is not a number of at least 0"),
    ("preference", {"prompt": "p", **PAIR, "margin": float("nan")}, "margin is not a number of at least 0"),
    ("preference", {"prompt": "p", **PAIR, "margin": float("inf")}, "margin is not a number of at least 0"),
    ("preference", {"prompt": "p", **PAIR, "margin": 10**400}, "margin is not a number of at least 0"),
    (
        "preference",
        {"prompt": "p", **PAIR, "score_chosen": 1, "score_rejected": 2},
        "margin is not a number of at least 0",
    ),
    ("preference", {"prompt": "p", **PAIR, "answer": ["x", "y"]}, "answer is neither a text nor a number"),
    ("preference", {"prompt": "p", **PAIR, "answer": True}, "answer is neither a text nor a number"),
    ("preference", {"prompt": "p", **PAIR, "answer": "long ####"}, "empty text"),
    ("preference", {"prompt": "p", **PAIR, "system": 3}, "system is not a text"),
    ("ranked", {"responses": ["a", "b"], "scores": [1, 2]}, "prompt is missing"),
    ("ranked", {"prompt": "p", "responses": ["a", "b"]}, "scores is not a list"),
    ("compared", {"prompt": "p", "response_a": "x", "response_b": "y"}, "winner is missing"),
    ("compared", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "q"}, BAD_WINNER),
    ("compared", {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "tie"}, "neither response is better"),
    ("compared", {"prompt": "p", "response_a": "x", "response_b": None, "winner": "a"}, "response is missing"),
    ("choices", {"question": "p", "choices": ["x", "y"], "answer": "C"}, "the correct choice is none of the choices"),
    ("choices", {"question": "p", "choices": ["x"], "answer": "A"}, "fewer than two responses"),
    ("demonstrations", {"messages": chat("p")}, "answer is not an assistant's turn"),
    (
        "tree",
        {"prompt": {"role": "prompter", "text": "p", "replies": [{"role": "assistant", "text": "a", "rank": 0}]}},
        "no message of the tree has two ranked replies",
    ),
    ("ranked", {"prompt": "p", "scores": [1, 2]}, "responses is missing"),
    ("ranked", {"prompt": "p", "responses": "a", "scores": [1]}, "responses is not a list"),
    ("ranked", {"prompt": "p", "responses": ["a"], "scores": 1}, "scores is not a list"),
    ("ranked", {"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "responses and scores differ in number"),
    ("ranked", {"prompt": "p", "responses": ["a", "b"], "scores": [1, None]}, "score is not a number"),
    (
        "ranked",
        {"prompt": "p", "responses": [3, "b"], "scores": [1, 2]},
        "response is neither a text nor chat messages",
    ),
    ("ranked", {"prompt": "p", "responses": ["", "b"], "scores": [1, 2]}, "empty text"),
    ("ranked", {"prompt": "p", "responses": ["a"], "scores": [1]}, "fewer than two responses"),
    ("ranked", {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1.0]}, "all responses score alike"),
    ("thumbs", {"response": "r", "label": 1}, "prompt is missing"),
    ("thumbs", {"prompt": "p", "label": 1}, "response is missing"),
    ("thumbs", {"prompt": "p", "response": "r"}, "label is missing"),
    ("thumbs", {"prompt": "p", "response": "r", "label": "maybe"}, BAD_LABEL),
    ("thumbs", {"prompt": "p", "response": "r", "label": 2}, BAD_LABEL),
    ("thumbs", {"prompt": "p", "response": "r", "label": [1]}, BAD_LABEL),
    ("prompt_answer", {"answer": "2"}, "prompt is missing"),
    ("prompt_answer", {"prompt": "p"}, "answer is missing"),
    ("prompt_answer", {"prompt": "p", "answer": " "}, "answer is missing"),
    ("prompt_answer", {"prompt": "p", "answer": float("nan")}, "answer is neither a text nor a number"),
    ("prompts", {"prompt": chat("p", "a")}, "prompt does not end with the user's turn"),
]


@pytest.mark.parametrize(("form", "content", "reason"), FAULTS)
def test_what_cannot_be_used_is_a_fault_with_its_reason(form: str, content: Any, reason: str, tmp_path: Path):
    assert parsed(content, tmp_path, after=form) == [reason]


def test_a_row_and_a_fault_know_their_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "p", "chosen": "a", "rejected": "b"}\nbroken\n{"prompt": "p"}\n')
    assert list(read_rows(Source(str(path)))) == [
        Row(said("p"), "a", "b", source=str(path), number=2),
        Fault(str(path), 3, "broken JSON"),
        Fault(str(path), 4, "chosen is missing"),
    ]


def test_most_of_the_first_records_tell_the_form(tmp_path: Path):
    pair, thumb = {"prompt": "p", **PAIR}, {"prompt": "p", "response": "r", "label": 1}
    assert form_of(written(tmp_path / "a.jsonl", 3, thumb, pair, pair)) == "preference"
    assert form_of(written(tmp_path / "a.jsonl", *[pair] * 100, *[thumb] * 200)) == "preference"
    assert form_of(written(tmp_path / "a.jsonl", thumb, pair)) == "preference"  # as many: the first of the table
    found = list(read_rows(written(tmp_path / "a.jsonl", *[pair] * 2, thumb)))
    assert [one.reason for one in found if isinstance(one, Fault)] == ["chosen is missing"]


def test_a_file_of_broken_rows_alone_has_no_form_and_gives_its_faults(tmp_path: Path):
    source = written(tmp_path / "a.jsonl", 1, [2])
    assert form_of(source) is None
    assert [fault.reason for fault in read_rows(source) if isinstance(fault, Fault)] == ["not an object"] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "prompt is missing"),
        ({"prefix": 3}, "prefix is not a text"),
        ({"prefix": " \n"}, "empty text"),
        ({"chosen": "\n"}, "empty text"),
        ({"rejected": None}, "rejected is missing"),
        ({"prompt": chat("p", "a")}, "prompt does not end with the user's turn"),
    ],
)
def test_a_step_pair_that_cannot_be_used_says_why(change: dict[str, Any], reason: str, tmp_path: Path):
    assert parsed({**SOUND["step_pair"], **change}, tmp_path, after="step_pair") == [reason]


def test_a_step_pair_among_many_pairs_is_one_too(tmp_path: Path):
    pair, step = {"prompt": "p", **PAIR}, SOUND["step_pair"]
    for rows in ([pair, pair, step], [pair] * 150 + [step], [step, step, pair]):
        found = [row for row in read_rows(written(tmp_path / "a.jsonl", *rows)) if isinstance(row, Row)]
        assert [row.prefix for row in found] == [row.get("prefix") for row in rows]


def test_labels_of_single_steps_are_refused_with_what_is_missing(tmp_path: Path):
    """TRL's stepwise form has no chosen step beside the first wrong one."""
    content = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}
    with pytest.raises(
        DataError, match=r"rejected steps only \(the first false label\); a step pair needs prompt, prefix"
    ):
        form_of(written(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"text": "p", "class": 3}, r"text \(short words\), class \(numbers\)"),
        ({"response": "a", "label": "maybe so, or not"}, r"response \(short words\), label"),
        ({}, "none"),
    ],
)
def test_columns_that_make_no_form_are_told_with_the_forms(content: Any, found: str, tmp_path: Path):
    with pytest.raises(DataError, match=rf"a\.jsonl: rows of no known form; keys found: {found}") as error:
        list(read_rows(written(tmp_path / "a.jsonl", content)))
    assert all(f"\n  {name}: " in str(error.value) for name in FORMS)


def test_answers_without_a_prompt_are_told_with_the_other_columns(tmp_path: Path):
    with pytest.raises(DataError, match=r"read as preference, but no column seems to be the prompt; .*: frage"):
        list(read_rows(written(tmp_path / "a.jsonl", {"frage": "p", **PAIR})))


def test_a_table_without_a_header_is_told(tmp_path: Path):
    (tmp_path / "a.csv").write_text("why?,good,bad\nhow?,fine,poor\n")
    with pytest.raises(DataError, match=r"no column seems to be the prompt; .*other columns: why\?"):
        list(read_rows(Source(str(tmp_path / "a.csv"))))


def test_an_unknown_form_and_an_empty_file_are_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"no form of data is called 'ranks'; did you mean 'ranked'\?"):
        list(read_rows(Source("a.jsonl"), form="ranks"))
    with pytest.raises(DataError, match="known: auto, tree, step_pair, preference, ranked"):
        list(read_rows(Source("a.jsonl"), form="zzz"))
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"a\.jsonl: no row in it"):
        list(read_rows(Source(str(tmp_path / "a.jsonl"))))


def prompts_of(sources: list[Source], seed: int) -> list[str]:
    return [row.prompt for row in mix(sources, seed=seed) if isinstance(row, Row)]


def test_a_mixture_keeps_shares_by_prompt_and_rows_added_change_no_other(tmp_path: Path):
    """Of 2,000 prompts with weight 0.5 of 2, 500 are expected, with a standard deviation of 19.4."""
    pair = {"chosen": "good", "rejected": "bad"}
    whole = written(tmp_path / "whole.jsonl", *({"prompt": f"w{i}", **pair} for i in range(50)))
    small = [{"prompt": f"s{i // 2}", **pair, "chosen": f"good {i}"} for i in range(4000)]

    def thinned(rows: list[Any], seed: int = 3, weight: float = 0.5) -> list[str]:
        part = written(tmp_path / "part.jsonl", *rows)
        return prompts_of([Source(whole.path, weight=2.0), Source(part.path, weight=weight)], seed)

    kept = thinned(small)
    assert kept[:50] == [f"w{i}" for i in range(50)]
    counts = Counter(kept[50:])
    assert set(counts.values()) == {2}  # all rows of a prompt, or none
    assert 400 < len(counts) < 600
    assert set(thinned(small[::-1])) == set(kept)
    assert set(thinned(small[:1000])) == set(kept) & {f"w{i}" for i in range(50)} | {
        f"s{i}" for i in range(500) if f"s{i}" in counts
    }
    assert set(thinned(small, seed=4)) != set(kept)
    assert set(kept) < set(thinned(small, weight=1.0))


def test_faults_of_a_mixture_are_thinned_alike(tmp_path: Path):
    """500 of 2,000 are expected, as for rows."""
    (tmp_path / "part.jsonl").write_text("broken\n" * 2000)
    whole = written(tmp_path / "whole.jsonl", {"prompt": "p"})
    found = list(mix([whole, Source(str(tmp_path / "part.jsonl"), weight=0.25)], seed=1))
    assert 400 < sum(isinstance(item, Fault) for item in found) < 600


def test_every_form_has_a_reader():
    assert list(READERS) == list(FORMS)
    assert set(SOUND) == set(FORMS)


def test_a_mixture_of_nothing_or_without_a_weight_is_told():
    with pytest.raises(DataError, match="no source of data"):
        list(mix([], seed=1))
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match=r"b: weight .* is not a number above 0"):
            list(mix([Source("a"), Source("b", weight=weight)], seed=1))


# Any conversation, written in any form and container, is the same row again.

# transcripts cannot hold a turn that spells the marks of turns, and a text is stripped
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip).filter(bool)
SAFE = TEXT.filter(lambda text: "Human:" not in text and "Assistant:" not in text)


def in_form(form: str, row: Row) -> dict[str, Any]:
    prompt = [dict(turn) for turn in row.messages]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    conversation = [{"from": names[turn["role"]], "value": turn["content"]} for turn in row.messages]
    pair = {"chosen": row.chosen, "rejected": row.rejected, "margin": row.margin}
    if form == "preference":
        return {"prompt": prompt, **pair}
    if form == "implicit":
        both = {"chosen": [*prompt, one(row.chosen or "")], "rejected": [*prompt, one(row.rejected or "")]}
        return {**both, "margin": row.margin}
    if form == "sharegpt":
        return {"conversations": conversation, **pair}
    if form == "ranked":
        return {"prompt": prompt, "responses": [row.rejected, row.chosen], "scores": [0.0, row.margin]}
    marks = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    start = "".join(marks[turn["role"]] + turn["content"] for turn in row.messages)
    return {key: f"{start}\n\nAssistant: {pair[key]}" for key in ("chosen", "rejected")} | {"margin": row.margin}


def in_container(container: str, contents: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / container
    if container == "a.parquet":
        parquet.write_table(pa.Table.from_pylist(contents), path)
    elif container == "a.csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(contents[0])
            for content in contents:
                writer.writerow([v if isinstance(v, str) else json.dumps(v) for v in content.values()])
    elif container == "a.json":
        path.write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
    else:
        lines = "".join(json.dumps(content, ensure_ascii=False) + "\n" for content in contents).encode()
        path.write_bytes(gzip.compress(lines) if container.endswith(".gz") else lines)
    return path


@st.composite
def rows_of(draw: st.DrawFn, form: str) -> Row:
    turns = draw(st.integers(0, 2)) * 2 + 1
    system = draw(st.none() | SAFE) if form != "transcripts" else None
    messages = said(*(draw(SAFE) for _ in range(turns)), system=system)
    margin = draw(st.sampled_from([0.25, 1.0, 3.5]))
    return Row(messages, draw(SAFE), draw(SAFE), margin)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_conversation_in_any_form_and_container_is_read_back(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
):
    form = data.draw(st.sampled_from(["preference", "implicit", "sharegpt", "ranked", "transcripts"]))
    container = data.draw(st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.json", "a.parquet", "a.csv"]))
    rows = data.draw(st.lists(rows_of(form), min_size=1, max_size=4))
    path = in_container(container, [in_form(form, row) for row in rows], tmp_path_factory.mktemp("any"))
    expected = [
        Row(row.messages, row.chosen, row.rejected, row.margin, source=str(path), number=number)
        for number, row in enumerate(rows, start=1)
    ]
    assert list(read_rows(Source(str(path)))) == expected


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "score"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [
        *("prompt", "chosen", "rejected", "margin", "answer", "system", "tools", "conversations", "messages"),
        *("responses", "scores", "response", "label", "instruction", "input", "score_chosen", "score_rejected"),
        *("prefix", "completions", "labels"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(content=st.dictionaries(KEYS, VALUES, max_size=6), form=st.sampled_from([*SOUND]))
def test_a_record_of_anything_gives_rows_or_faults(content: Any, form: str, tmp_path_factory: pytest.TempPathFactory):
    """After records that tell the columns; alone, it may have no form."""
    path = tmp_path_factory.mktemp("odd") / "a.jsonl"
    with suppress(DataError):
        list(read_rows(written(path, content)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignflow.data.formats.SAMPLE", 3)
        found = [item for item in read_rows(written(path, *[SOUND[form]] * 3, content)) if item.number == 4]
    assert found
    for item in found:
        assert isinstance(item, Fault) or (item.messages[-1]["role"] == "user" and item.prompt_id)


real = pytest.mark.skipif(not REAL.exists(), reason="the real data is not here")


def faults_of(items: list[Row | Fault]) -> Counter[str]:
    return Counter(item.reason for item in items if isinstance(item, Fault))


@real
def test_real_transcripts_are_conversations_of_several_turns():
    """Counted separately with a regular expression: 3 rows end empty, 7 have two assistant turns in succession."""
    items = list(read_rows(Source(str(REAL / "hh-rlhf" / "harmless-base.jsonl.gz"))))
    assert form_of(Source(str(REAL / "hh-rlhf"))) == "preference"
    assert len(items) == 1433
    assert faults_of(items) == {"chat turns out of order": 7, "empty text": 3}
    lengths = Counter(len(item.messages) for item in items if isinstance(item, Row))
    assert (lengths[1], lengths[3], max(lengths)) == (409, 362, 35)
    assert {item.number for item in items if isinstance(item, Fault) and item.reason == "empty text"} == {308, 573, 685}


@real
def test_real_sharegpt_rows_keep_their_system_turns():
    """54 of 201 conversations open with a system turn: counted in the file."""
    source = Source(str(REAL / "sharegpt-dpo" / "dpo_en.json"))
    rows = [item for item in read_rows(source) if isinstance(item, Row)]
    assert form_of(source) == "preference"
    assert [row.number for row in rows] == list(range(1, 202))
    assert sum(row.messages[0]["role"] == "system" for row in rows) == 54
    assert all(row.chosen and row.rejected and row.messages[-1]["role"] == "user" for row in rows)


@real
def test_real_answers_are_numbers_with_their_solutions():
    source = Source(str(REAL / "gsm8k" / "train.jsonl"))
    rows = [item for item in read_rows(source) if isinstance(item, Row)]
    assert form_of(source) == "prompt_answer"
    assert len(rows) == 735
    assert rows[0].answer == "35"
    for row in rows:
        assert math.isfinite(float((row.answer or "").replace(",", "")))
        assert (row.chosen or "").endswith(f"#### {row.answer}")
        assert row.rejected is None
