"""Answers of a policy on disk: the stage ``answer`` writes them, ``evaluate`` judges them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tasks.data.prepared import read_lines, read_prompts

ANSWERS = Path("answers")
Value = TypeVar("Value")


@dataclass(frozen=True)
class PolicyAnswers:
    """What one policy answered to prepared rows."""

    rows: Sequence[Mapping[str, Any]]
    tokens: list[tuple[int, ...]]
    """Up to and including the one that ends the response."""
    truncated: list[bool]
    """Where the length limit came first."""
    texts: list[str]
    kl: list[float]
    """To the reference at ``kl_temperature``, nats a response."""

    def only(self, places: Sequence[int]) -> "PolicyAnswers":
        """Return the answers at some places."""

        def taken(column: Sequence[Value]) -> list[Value]:
            return [column[i] for i in places]

        return PolicyAnswers(
            taken(self.rows), taken(self.tokens), taken(self.truncated), taken(self.texts), taken(self.kl)
        )


def write_answers(
    folder: Path,
    answers: Sequence[PolicyAnswers],
    trajectory: Sequence[Mapping[str, Any]],
    known: Mapping[str, float],
) -> None:
    """Write what ``read_answers`` reads.

    Args:
        folder: of one policy.
        answers: of the final policy, then of each earlier snapshot in order.
        trajectory: step and label of each snapshot, the final policy last; empty for one that was not trained here.
        known: further figures of the policy: its capability, the temperature of its KL.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = ["final.jsonl", *(_snapshot(number) for number in range(len(answers) - 1))]
    for name, one in zip(files, answers, strict=True):
        rows = zip(one.rows, one.tokens, one.truncated, one.texts, one.kl, strict=True)
        lines = [
            {"prompt_id": row["prompt_id"], "response": text, "tokens": tokens, "truncated": truncated, "kl": kl}
            for row, tokens, truncated, text, kl in rows
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    content = {"trajectory": list(trajectory), "figures": dict(known)}
    (folder / "policy.json").write_text(json.dumps(content, indent=2) + "\n")


def read_answers(folder: Path, side: str) -> tuple[list[PolicyAnswers], list[dict[str, Any]], dict[str, float]]:
    """Return the answers of a policy and its snapshots, the trajectory, and further figures.

    Raises:
        OtherPrompts: an answer is to no prompt of the side.
    """
    content = json.loads((folder / "policy.json").read_text())
    rows = {row["prompt_id"]: row for row in read_prompts(side)}
    files = ["final.jsonl", *(_snapshot(number) for number in range(len(content["trajectory"]) - 1))]
    return [_read(folder / name, rows) for name in files], content["trajectory"], content["figures"]


def read_figures(folder: Path) -> dict[str, float]:
    """Return the further figures of a policy alone."""
    figures: dict[str, float] = json.loads((folder / "policy.json").read_text())["figures"]
    return figures


def _snapshot(number: int) -> str:
    return f"snapshot-{number + 1}.jsonl"


def _read(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> PolicyAnswers:
    lines = read_lines(path)
    unknown = [line["prompt_id"] for line in lines if line["prompt_id"] not in rows]
    if unknown:
        raise OtherPrompts(
            f"{path} answers {unknown[0]!r}, a prompt that is not in the data; run the stage answer again"
        )
    return PolicyAnswers(
        [rows[line["prompt_id"]] for line in lines],
        [tuple(line["tokens"]) for line in lines],
        [line["truncated"] for line in lines],
        [line["response"] for line in lines],
        [line["kl"] for line in lines],
    )


class OtherPrompts(ValueError):
    """Answers do not belong to the prepared data."""
