"""Read preferences, drop what cannot be used and say why, and split by prompt."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignflow.data.rows import DataError, Row


@dataclass(frozen=True)
class Dropped:
    """A row that is not used."""

    row: int
    """Line of the file, from 1."""
    reason: str


def read(path: Path) -> tuple[list[Row], list[Dropped]]:
    """Read a JSONL file of ``prompt``, ``chosen`` and ``rejected`` texts, and perhaps ``margin`` and ``answer``.

    Rows that are broken, empty, repeated, equal on both sides or that contradict an earlier row are dropped.

    Raises:
        DataError: the file is missing.
    """
    if not path.exists():
        raise DataError(f"{path}: not found; set data.path in params.yaml to a JSONL file of preferences")
    kept: list[Row] = []
    dropped: list[Dropped] = []
    seen: set[tuple[str, str | None, str | None]] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row = _parse(line, number)
            reason = row if isinstance(row, str) else _fault(row, seen)
            if reason is not None:
                dropped.append(Dropped(number, reason))
            elif isinstance(row, Row):
                seen.add((row.prompt, row.chosen, row.rejected))
                kept.append(row)
    return kept, dropped


def gate(total: int, dropped: Sequence[Dropped], *, most: float, path: Path) -> dict[str, int]:
    """Count dropped rows by reason, and stop when they are too many.

    Raises:
        DataError: nothing is left, or the dropped share is above ``most``; the message holds the counts.
    """
    counts = dict(Counter(d.reason for d in dropped).most_common())
    examples = {reason: [d.row for d in dropped if d.reason == reason][:3] for reason in counts}
    table = "".join(
        f"\n  {n:6d}  {reason} (rows {', '.join(map(str, examples[reason]))})" for reason, n in counts.items()
    )
    if total == len(dropped):
        raise DataError(f"{path}: no usable row of {total}{table}")
    if len(dropped) > most * total:
        raise DataError(
            f"{path}: {len(dropped)} of {total} rows cannot be used, more than data.max_dropped_fraction ({most}) "
            f"allows:{table}\n  repair these rows, or raise data.max_dropped_fraction"
        )
    return counts


def split(prompts: Iterable[str], *, eval_fraction: float, seed: int) -> set[str]:
    """Return the prompts kept for evaluation.

    A prompt's side depends on its own hash and the seed alone: all its rows are on one side, and rows added later
    move none.
    """

    def share(prompt: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:8], "big") / 2**64

    return {prompt for prompt in prompts if share(prompt) < eval_fraction}


def _parse(line: bytes, number: int) -> Row | str:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (json.JSONDecodeError, RecursionError):
        return "broken JSON"
    return _record(row, number) if isinstance(row, dict) else "not an object"


def _record(row: dict[str, Any], number: int) -> Row | str:
    texts = [row.get(key) for key in ("prompt", "chosen", "rejected")]
    margin, answer = row.get("margin", 0.0), row.get("answer")
    if not all(isinstance(text, str) for text in texts):
        return "prompt, chosen or rejected is missing or not a text"
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < math.inf:
        return "margin is not a number of at least 0"
    if answer is not None and not isinstance(answer, str):
        return "answer is not a text"
    prompt, chosen, rejected = (str(text).strip() for text in texts)
    return Row(
        ({"role": "user", "content": prompt},),
        chosen,
        rejected,
        float(margin),
        (answer or "").strip() or None,
        number=number,
    )


def _fault(row: Row, seen: set[tuple[str, str | None, str | None]]) -> str | None:
    if not (row.prompt and row.chosen and row.rejected):
        return "empty text"
    if row.chosen == row.rejected:
        return "chosen equals rejected"
    if (row.prompt, row.chosen, row.rejected) in seen:
        return "repeated row"
    if (row.prompt, row.rejected, row.chosen) in seen:
        return "contradicts an earlier row"
    return None
