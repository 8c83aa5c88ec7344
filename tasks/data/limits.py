"""What stops a run because too many rows cannot be used, and what their owner can do."""

import math
from collections.abc import Mapping, Sequence

from alignflow.data.gate import REASONS, Finding, Limits, exceeded
from alignflow.data.rows import DataError

ADVICE: Mapping[str, str] = {
    "broken": "repair or delete these rows; text has to be UTF-8",
    "wrong_type": "repair these rows, or set data.columns; files of several forms go into data.sources",
    "empty": "fill in or delete these rows",
    "role_order": "let user and assistant alternate, and end with a user message",
    "refused": "take another base.chat_template, e.g. plain",
    "identical": "delete these rows: equal answers show no preference",
    "prompt_too_long": "raise data.max_prompt_length, at most to the model's limit",
    "response_too_long": "raise data.max_response_length, at most to the model's limit",
    "contradictory": "delete the judgements that are wrong",
    "duplicate": "nothing: one of each is kept",
    "tie": "nothing: no preference can be learned from them",
    "answer": "nothing: the other answers are kept",
    "media": "train on text alone: take these rows out",
    "both_sides": "delete one of the two spellings",
    "near_duplicate": "delete one of the two, or raise data.near_duplicate_threshold if they are not similar",
}
"""What to do about dropped rows, by the keys of ``alignflow.data.gate.REASONS``."""


def problems(total: int, findings: Sequence[Finding], limits: Limits) -> list[str]:
    """Return what is above its limit, each as a sentence; empty when the data may be used."""
    if not total:
        return ["there is no row"]
    said = []
    for rows, reason, limit in exceeded(total, findings, limits):
        if reason is not None:
            key, what = f"data.max_fraction.{reason}", f"{rows} of {total} rows: {REASONS[reason]}"
        elif rows == total:
            said.append(f"none of {total} rows can be used")
            continue
        else:
            key, what = "data.max_dropped_fraction", f"{rows} of {total} rows cannot be used"
        enough = math.ceil(100 * rows / total) / 100
        said.append(
            f"{what}, more than {key} ({limit:g}) allows; to go on without them: alignflow set {key}={enough:g}"
        )
    return said


def check(name: str, total: int, findings: Sequence[Finding], limits: Limits) -> None:
    """Stop when too many rows are dropped.

    Raises:
        DataError: with the data's name, the limit, the table of reasons with example rows, and what to do.
    """
    said = problems(total, findings, limits)
    if not said:
        return
    table = "".join(f"\n{finding.line}" for finding in findings)
    advice = "".join(f"\n  {REASONS[reason]}: {ADVICE[reason]}" for reason in dict.fromkeys(f.reason for f in findings))
    allow = "\n`alignflow data check` shows all details" if findings else ""
    raise DataError(f"{name}: {'; '.join(said)}{':' if table else ''}{table}{advice}{allow}")
