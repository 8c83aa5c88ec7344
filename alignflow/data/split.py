"""Assigns each prompt to a side (train, judge or eval) by a hash of the first user message of its conversation."""

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Side(IntEnum):
    """What a row is used for."""

    TRAIN = 0
    JUDGE = 1
    """Training prompts of the second reward model only."""
    EVAL = 2


def draw(opening: str, seed: int) -> int:
    """Return the 64-bit number that determines a conversation's side, from its first user message and the seed.

    Conversations with the same first message, up to case and spaces, get the same number: a conversation and its longer
    versions stay on one side. The number does not depend on other rows, so new rows do not move existing ones.
    """
    text = " ".join(opening.casefold().split())
    return int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest())


def sides(draws: NDArray[np.uint64], *, eval_fraction: float, judge_fraction: float) -> NDArray[np.uint8]:
    """Return each row's side.

    Args:
        draws: numbers that ``draw`` returned. (N,)
        eval_fraction: share of all prompts for evaluation.
        judge_fraction: share of the other prompts for the second reward model.
    """
    share = draws / 2.0**64
    judged = eval_fraction + (1 - eval_fraction) * judge_fraction
    return np.select(
        [share < eval_fraction, share < judged], [np.uint8(Side.EVAL), np.uint8(Side.JUDGE)], np.uint8(Side.TRAIN)
    )
