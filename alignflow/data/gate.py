"""Reasons to drop a row, and limits on the number of dropped rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignflow.data import documents, sources
from alignflow.data.forms import faults
from alignflow.data.sources import Fault

REASONS: Mapping[str, str] = {
    "broken": "cannot be parsed",
    "wrong_type": "a field is missing or of a wrong type",
    "empty": "empty text",
    "role_order": "chat turns out of order",
    "refused": "the chat template refuses its turns",
    "identical": "chosen equals rejected",
    "prompt_too_long": "prompt does not fit",
    "response_too_long": "response does not fit",
    "contradictory": "the same answers judged both ways",
    "duplicate": "repeated row",
    "tie": "no answer is better",
    "answer": "one of several answers is left out",
    "media": "images, sound or video",
    "both_sides": "same words as a prompt of the evaluation side",
    "near_duplicate": "almost a prompt of the evaluation side",
}
"""Key and text of each reason to drop a row."""

UNREADABLE = {
    **dict.fromkeys((sources.BROKEN_JSON, sources.BROKEN_CSV, sources.CELLS, sources.NOT_UTF8), "broken"),
    **dict.fromkeys((sources.NOT_AN_OBJECT, documents.CUT_CELLS, faults.HALF_CHARACTER, faults.CUT_CHAT), "broken"),
    faults.EMPTY: "empty",
    **dict.fromkeys((faults.ORDER, faults.PROMPT_END, faults.NOT_AN_ANSWER, faults.UNKNOWN_ROLE), "role_order"),
    **dict.fromkeys((faults.TIE, faults.ALL_TIED, faults.NO_RANKED_REPLIES), "tie"),
    faults.MEDIA: "media",
}
"""Reason of each fault found while reading; faults that are not listed here are of a wrong type."""

NO_DAMAGE = ("duplicate", "tie", "answer")
"""Reasons that never make too many rows unusable: what is dropped says nothing, or is in the data another time."""

EXAMPLES = 3
"""Number of example rows that a finding names."""


@dataclass(frozen=True)
class Finding:
    """All rows with the same fault."""

    reason: str
    """A key of ``REASONS``."""
    text: str
    """The fault in words. A reason may have several texts, e.g. for the ways in which a row can be broken."""
    rows: int
    examples: tuple[str, ...]
    """Row numbers; with several sources, source and number."""

    @property
    def line(self) -> str:
        """The finding as a line of a table."""
        return f"{self.rows:7d}  {self.text} (rows {', '.join(self.examples)})"


@dataclass(frozen=True)
class Limits:
    """Largest shares of rows that may be dropped."""

    overall: float
    by_reason: Mapping[str, float]


def reason_of(fault: Fault) -> str:
    """Return the key of a fault that was found while reading."""
    return "answer" if fault.reason.startswith(faults.LEFT_OUT) else UNREADABLE.get(fault.reason, "wrong_type")


class Excess(NamedTuple):
    """More rows were dropped than the limit allows."""

    rows: int
    reason: str | None
    """A key of ``REASONS``; None for all dropped rows together."""
    limit: float
    """The allowed share."""


def exceeded(total: int, findings: Sequence[Finding], limits: Limits) -> list[Excess]:
    """Return the limits that are exceeded, that of all damaged rows first. Dropping every row exceeds any limit."""
    damaged = sum(f.rows for f in findings if f.reason not in NO_DAMAGE)
    dropped = sum(f.rows for f in findings)
    found = []
    if dropped == total or damaged > limits.overall * total:
        found.append(Excess(dropped if dropped == total else damaged, None, limits.overall))
    for reason, most in limits.by_reason.items():
        rows = sum(f.rows for f in findings if f.reason == reason)
        if rows > most * total:
            found.append(Excess(rows, reason, most))
    return found


def mix(*parts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each row of columns of 64-bit hashes (the finaliser of splitmix64 after each column)."""
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
    """Return which rows contradict another row: one prefers A to B and the other B to A, or one answer is good and bad.

    All rows of a contradiction are returned, in any order of rows, because it is unknown which of them is correct.

    Args:
        prompt: hash of each row's prompt. (N,)
        chosen: hash of its good answer, 0 for none. (N,)
        rejected: hash of its bad answer, 0 for none. (N,)
    """
    turned: NDArray[np.bool_] = np.isin(mix(prompt, chosen, rejected), mix(prompt, rejected, chosen))
    turned &= chosen != rejected
    return turned


def repeated(*columns: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which rows equal an earlier row in all columns. (N,)"""
    first = np.unique(mix(*columns), return_index=True)[1]
    again = np.ones(len(columns[0]), bool)
    again[first] = False
    return again


def partners(
    ups: NDArray[np.uint64], good: NDArray[np.uint64], downs: NDArray[np.uint64], bad: NDArray[np.uint64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair good and bad answers to the same prompt, one to one, in the order of the answers' hashes.

    Args:
        ups: hash of the prompt of each good answer. (U,)
        good: hash of that answer. (U,)
        downs: hash of the prompt of each bad answer. (D,)
        bad: hash of that answer. (D,)

    Returns:
        indices into ups and downs, of equal length
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
