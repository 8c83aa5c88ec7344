"""Assigns each prompt to a side (train, judge, validation or test) by a hash of the first user message."""

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Side(IntEnum):
    """What a row is used for."""

    TRAIN = 0
    JUDGE = 1
    """Training prompts of the second reward model only."""
    VALIDATION = 2
    """Policies are compared on it, and settings may be chosen by it."""
    TEST = 3
    """Read once, at the end of a run; nothing is chosen by it."""


def draw(opening: str, seed: int) -> int:
    """Return the 64-bit number that determines a conversation's side, from its first user message and the seed.

    Conversations with the same first message, up to case and spaces, get the same number: a conversation and its longer
    versions stay on one side. The number does not depend on other rows, so new rows do not move existing ones.
    """
    text = " ".join(opening.casefold().split())
    return int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest())


def sides(
    draws: NDArray[np.uint64], *, validation_fraction: float, judge_fraction: float, test_fraction: float
) -> NDArray[np.uint8]:
    """Return each row's side: validation has the lowest draws, test the highest.

    Another share of test prompts moves prompts between train and test, and no other.

    Args:
        draws: numbers that ``draw`` returned. (N,)
        validation_fraction: share of all prompts for validation.
        judge_fraction: share of the prompts outside validation for the second reward model.
        test_fraction: share of all prompts for the test.
    """
    share = draws / 2.0**64  # the highest draws round to 1.0: they are test prompts only if there are any
    judged = judged_until(validation_fraction, judge_fraction)
    return np.select(
        [share < validation_fraction, share < judged, share > 1 - test_fraction],
        [np.uint8(Side.VALIDATION), np.uint8(Side.JUDGE), np.uint8(Side.TEST)],
        np.uint8(Side.TRAIN),
    )


def judged_until(validation_fraction: float, judge_fraction: float) -> float:
    """Return the share of all prompts that validation and the second reward model have together."""
    return validation_fraction + (1 - validation_fraction) * judge_fraction
