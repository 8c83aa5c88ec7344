"""What makes a row unusable, how many such rows there may be, and the table that stops a run above that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignflow.data import formats, sources
from alignflow.data.rows import DataError
from alignflow.data.sources import Fault


class Reason(NamedTuple):
    """Why a row is dropped."""

    text: str
    """Said of the row."""
    advice: str
    """What its owner can do."""


REASONS = {
    "broken": Reason("cannot be parsed", "repair or delete these rows; text has to be UTF-8"),
    "wrong_type": Reason(
        "a field is missing or of a wrong type",
        "repair these rows, or name their form (data.format); files of several forms go into data.sources",
    ),
    "empty": Reason("empty text", "fill in or delete these rows"),
    "role_order": Reason("chat turns out of order", "let user and assistant take turns, and end with the user's"),
    "refused": Reason("the chat template refuses its turns", "take another base.chat_template, e.g. plain"),
    "identical": Reason("chosen equals rejected", "delete these rows: they say nothing"),
    "prompt_too_long": Reason("prompt does not fit", "raise data.max_prompt_length as far as the model goes"),
    "response_too_long": Reason("response does not fit", "raise data.max_response_length as far as the model goes"),
    "contradictory": Reason("the same answers judged both ways", "delete the judgements that are wrong"),
    "duplicate": Reason("repeated row", "delete the copies"),
    "both_sides": Reason("same words as a prompt of the evaluation side", "delete one of the two spellings"),
    "near_duplicate": Reason(
        "almost a prompt of the evaluation side",
        "delete one of the two, or raise data.near_duplicate_threshold if they are not alike",
    ),
}
"""By key, as in ``data.max_fraction``."""

UNREADABLE = {
    **dict.fromkeys((sources.BROKEN_JSON, sources.BROKEN_CSV, sources.CELLS, sources.NOT_UTF8), "broken"),
    **dict.fromkeys((sources.NOT_AN_OBJECT, formats.HALF_CHARACTER), "broken"),
    formats.EMPTY: "empty",
    **dict.fromkeys((formats.ORDER, formats.PROMPT_END, formats.NOT_AN_ANSWER, formats.UNKNOWN_ROLE), "role_order"),
}
"""Reasons of the faults that reading finds; the others are of a wrong type."""

EXAMPLES = 3
"""Rows named for a reason."""


@dataclass(frozen=True)
class Finding:
    """Rows that share one fault."""

    reason: str
    """A key of ``REASONS``."""
    text: str
    """The fault in words; one reason may have several, such as the ways in which a row is broken."""
    rows: int
    examples: tuple[str, ...]
    """Rows by number; with several sources, by source and number."""

    @property
    def line(self) -> str:
        """The finding as a line of a table."""
        return f"{self.rows:7d}  {self.text} (rows {', '.join(self.examples)})"


@dataclass(frozen=True)
class Limits:
    """Shares of the rows that may be dropped."""

    overall: float
    by_reason: Mapping[str, float]


def reason_of(fault: Fault) -> str:
    """Return the key of a fault that was found while reading."""
    return UNREADABLE.get(fault.reason, "wrong_type")


def exceeded(total: int, findings: Sequence[Finding], limits: Limits) -> list[str]:
    """Return what is above its limit, each as a sentence; empty when the data may be used."""
    if not total:
        return ["there is no row"]
    dropped = sum(f.rows for f in findings)
    said = []
    if dropped == total:
        said.append(f"none of {total} rows can be used")
    elif dropped > limits.overall * total:
        said.append(f"{dropped} of {total} rows cannot be used, more than data.max_dropped_fraction "
                    f"({limits.overall:g}) allows")  # fmt: skip
    for reason, most in limits.by_reason.items():
        rows = sum(f.rows for f in findings if f.reason == reason)
        if rows > most * total:
            said.append(f"{rows} of {total} rows: {REASONS[reason].text}, more than data.max_fraction.{reason} "
                        f"({most:g}) allows")  # fmt: skip
    return said


def check(name: str, total: int, findings: Sequence[Finding], limits: Limits) -> None:
    """Stop when too many rows are dropped.

    Raises:
        DataError: with the data's name, the limit, the table of reasons with example rows, and what to do.
    """
    said = exceeded(total, findings, limits)
    if not said:
        return
    table = "".join(f"\n{finding.line}" for finding in findings)
    advice = "".join(
        f"\n  {REASONS[reason].text}: {REASONS[reason].advice}" for reason in dict.fromkeys(f.reason for f in findings)
    )
    allow = "\nor allow more in params.yaml; `alignflow data check` shows the whole picture" if findings else ""
    raise DataError(f"{name}: {'; '.join(said)}{':' if table else ''}{table}{advice}{allow}")


def mix(*parts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of columns of 64-bit hashes, row by row (the finaliser of splitmix64 after each)."""
    state = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        state = state + part + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around at 64 bits
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def contradictory(
    prompt: NDArray[np.uint64], chosen: NDArray[np.uint64], rejected: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Return which rows another row contradicts: A over B and B over A, or one answer called good and bad.

    All sides of a contradiction are named, since none is known to be right, whatever their order.

    Args:
        prompt: hash of each row's prompt. (N,)
        chosen: of its good answer, 0 for none. (N,)
        rejected: of its bad answer, 0 for none. (N,)
    """
    turned: NDArray[np.bool_] = np.isin(mix(prompt, chosen, rejected), mix(prompt, rejected, chosen))
    turned &= chosen != rejected
    return turned


def repeated(*columns: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which rows are equal to an earlier one in all columns. (N,)"""
    first = np.unique(mix(*columns), return_index=True)[1]
    again = np.ones(len(columns[0]), bool)
    again[first] = False
    return again


def partners(
    ups: NDArray[np.uint64], good: NDArray[np.uint64], downs: NDArray[np.uint64], bad: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair the good and the bad answers to the same prompt, one to one, in the order of the answers' hashes.

    Args:
        ups: prompt of each good answer. (U,)
        good: the answer. (U,)
        downs: prompt of each bad answer. (D,)
        bad: the answer. (D,)

    Returns:
        indices into ups and downs, as long as each other
    """
    _, first, second = np.intersect1d(
        mix(ups, _rank(ups, good)), mix(downs, _rank(downs, bad)), assume_unique=True, return_indices=True
    )
    return first, second


def _rank(groups: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the place of each row within its group, in the order of keys."""
    order = np.lexsort((keys, groups))
    ordered = groups[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else order
    sizes = np.diff(np.append(starts, len(order)))
    rank = np.empty(len(order), np.uint64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    return rank
