"""Which side a prompt is on: train, judge or eval, by a hash of the first message of its conversation."""

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Side(IntEnum):
    """Who learns from a row, or is tested on it."""

    TRAIN = 0
    JUDGE = 1
    """Training prompts for the second reward model only."""
    EVAL = 2


def draw(opening: str, seed: int) -> int:
    """Return the 64-bit number that decides a conversation's side, from its first user message and the seed.

    Conversations that open alike, case and spaces aside, draw alike: those that grow from one another by turns
    stay together. No other row matters, so rows that are added later move none.
    """
    text = " ".join(opening.casefold().split())
    return int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest())


def sides(draws: NDArray[np.uint64], *, eval_fraction: float, judge_fraction: float) -> NDArray[np.uint8]:
    """Return each row's side.

    Args:
        draws: of ``draw``. (N,)
        eval_fraction: share of all prompts that is kept for evaluation.
        judge_fraction: share of the others that goes to the second reward model.
    """
    share = draws / 2.0**64
    judged = eval_fraction + (1 - eval_fraction) * judge_fraction
    return np.select(
        [share < eval_fraction, share < judged], [np.uint8(Side.EVAL), np.uint8(Side.JUDGE)], np.uint8(Side.TRAIN)
    )
