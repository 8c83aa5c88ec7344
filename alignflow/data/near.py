"""Finds near-duplicate prompts by MinHash (Broder 1997) and confirms them by their exact similarity."""

import re
from collections.abc import Callable, Sequence
from typing import AnyStr

import numpy as np
from numpy.typing import NDArray

from alignflow.data.rows import Message

SHINGLE = 5  # characters; word shingles would join short questions that differ in a single important word
PERMUTATIONS = 64
BANDS = 16  # of 4 hashes: prompts of similarity 0.8 share one with probability 1 − (1 − 0.8⁴)¹⁶ = 0.9998; 0.5: 0.64
SEED = 1  # of the permutations; it affects only which pairs are missed, because candidates are confirmed


def words_of(messages: Sequence[Message]) -> str:
    """Return the user's texts of a conversation, in lower case and without punctuation."""
    said = " ".join(m["content"] for m in messages if m["role"] == "user")
    return " ".join(re.findall(r"\w+", said.casefold()))


def shingles(text: AnyStr) -> set[AnyStr]:
    """Return the set of character n-grams of a text."""
    return {text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1))}


def similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of the shingles of two texts, in [0, 1]; 0 if their numbers differ.

    A question about 12 is not a duplicate of a question about 13, even if their texts are similar.
    """
    if re.findall(r"\d+", one) != re.findall(r"\d+", other):
        return 0.0
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def sketches(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the bands of each text's MinHash; similar texts probably share a band. (N, bands)"""
    from rensa import RMinHash

    if not texts:
        return np.empty((0, BANDS), np.uint32)
    tokens = [
        list(shingles(text.encode())) if text.isascii() else [part.encode() for part in shingles(text)]
        for text in texts
    ]
    rows = RMinHash.digest_matrix_from_token_byte_sets(tokens, PERMUTATIONS, SEED).to_rows()
    lanes = np.asarray(rows, np.uint64).reshape(len(texts), BANDS, PERMUTATIONS // BANDS)
    band = np.zeros((len(texts), BANDS), np.uint64)
    for lane in range(lanes.shape[2]):
        band = band * np.uint64(0x9E3779B97F4A7C15) + lanes[:, :, lane]  # wraps around at 64 bits
    return (band >> np.uint64(32)).astype(np.uint32)


def matches(
    held_out: NDArray[np.uint32],
    others: NDArray[np.uint32],
    *,
    text_of: Callable[[bool, int], str],
    threshold: float,
) -> list[tuple[int, int, float]]:
    """Return the other prompts that are near duplicates of a held-out prompt, each with the most similar one.

    Only sketches stay in memory; the texts of candidates are read one by one. In each band, the first held-out prompt
    with the same value is a candidate.

    Args:
        held_out: sketches of the evaluation side. (E, bands)
        others: sketches of the other sides. (N, bands)
        text_of: returns ``words_of`` a prompt, given whether it is held out and its row.
        threshold: minimum similarity.

    Returns:
        row in others, row in held_out, similarity; sorted by the row in others
    """
    candidates: dict[int, set[int]] = {}
    for band in range(held_out.shape[1] if len(held_out) else 0):
        keys, first = np.unique(held_out[:, band], return_index=True)
        place = np.minimum(np.searchsorted(keys, others[:, band]), len(keys) - 1)
        for row in np.flatnonzero(keys[place] == others[:, band]).tolist():
            candidates.setdefault(row, set()).add(int(first[place[row]]))
    found = []
    for row in sorted(candidates):
        mine = text_of(False, row)
        best = max((similarity(mine, text_of(True, other)), -other) for other in candidates[row])
        if best[0] >= threshold:
            found.append((row, -best[1], best[0]))
    return found
