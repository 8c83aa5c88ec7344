"""Read what the stage ``prepare`` wrote, and turn its texts into token ids."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow.data.encoding import encode_prompt, encode_response, encode_steps
from alignflow.types import Example, Pair
from tasks.paths import PREPARED


def read_prepared(side: str) -> list[dict[str, Any]]:
    """Return all prepared rows of ``train``, ``judge``, ``validation`` or ``test``."""
    return read_lines(PREPARED / f"{side}.jsonl")


def whole_answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that are no step pairs: only these say what a whole response is worth."""
    return [row for row in rows if row.get("prefix") is None]


def read_pairs(side: str) -> list[dict[str, Any]]:
    """Return the prepared rows of a side that have a chosen and a rejected response, or two next steps of one.

    Raises:
        LacksRows: there is none.
    """
    return _those(side, "pair of a chosen and a rejected response", ("chosen", "rejected"), steps=True)


def read_demonstrations(side: str) -> list[dict[str, Any]]:
    """Return the prepared rows of a side that have a whole chosen response, with or without a rejected one.

    Raises:
        LacksRows: there is none.
    """
    return _those(side, "chosen response", ("chosen",), steps=False)


def read_prompts(side: str) -> list[dict[str, Any]]:
    """Return the first prepared row of each distinct prompt of a side, whatever responses it has."""
    first: dict[str, dict[str, Any]] = {}
    for row in read_prepared(side):
        first.setdefault(row["prompt_id"], row)
    return list(first.values())


def _those(side: str, what: str, keys: Sequence[str], *, steps: bool) -> list[dict[str, Any]]:
    rows = read_prepared(side)
    whole = whole_answers(rows)
    found = [row for row in (rows if steps else whole) if all(row[key] is not None for key in keys)]
    if not found:
        good = sum(row["chosen"] is not None for row in whole)
        parts = (
            f" and {len(rows) - len(whole)} step pairs, which are parts of responses" if len(whole) < len(rows) else ""
        )
        can = ["ppo and grpo with rewards.rules and rewards.reward_model: 0"] if rows else []
        can = [*(["sft"] if good else []), *can] or ["nothing"]
        raise LacksRows(
            f"{PREPARED / f'{side}.jsonl'} has no {what}: it holds {len(rows)} rows, {good} of them with only a "
            f"chosen response{parts}; with this data you can run: {', '.join(can)}"
        )
    return found


class LacksRows(ValueError):
    """The prepared data has none of the rows that a stage learns from."""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file; only a line feed ends a line, since texts may hold other separators."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def encode_pairs(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Return rows of texts as rows of token ids; a step pair's prefix belongs to its prompt."""
    return [_encode_pair(tokenizer, row) for row in rows]


def _encode_pair(tokenizer: Any, row: Mapping[str, Any]) -> Pair:
    prompt, margin = encode_prompt(tokenizer, row["messages"]), row["margin"]
    if row.get("prefix") is None:
        chosen, rejected = (encode_response(tokenizer, row[key]) for key in ("chosen", "rejected"))
        return Pair(prompt, chosen, rejected, margin)
    (prefix, chosen), (_, rejected) = (
        encode_steps(tokenizer, (row["prefix"], row[key])) for key in ("chosen", "rejected")
    )
    return Pair((*prompt, *prefix), chosen, rejected, margin)


def encode_demonstrations(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Return prompts with chosen responses as rows of token ids."""
    return [
        Example(encode_prompt(tokenizer, row["messages"]), encode_response(tokenizer, row["chosen"])) for row in rows
    ]
