"""Pairwise preferences between the responses to one prompt, and how often each response wins.

P(a ≻ b) = σ((s_a − s_b) / τ)                     (Bradley and Terry 1952, on the rewards s)
win rate  = (1/m) Σ_b P(a ≻ b)                    over all m responses, itself included, which adds ½
                                                  (Wu et al. 2024, SPPO, arXiv:2405.00675, Eq. 3.5)
win share = (1/(m−1)) Σ_{b≠a} P(a ≻ b)            over the others (Swamy et al. 2024, SPO, arXiv:2401.04056)

A win rate is the target of the loss ``sppo``. A win share is a reward: that of SPO, for any method that samples several
responses to a prompt. It lies between 0 and 1, so a reward far from the others has no more weight than a win.
"""

import math
from collections.abc import Sequence

Preferences = Sequence[Sequence[float | None]]
"""P(row ≻ column); None where one of the two has no reward. m × m"""


def preferences(scores: Sequence[float | None], temperature: float) -> list[list[float | None]]:
    """Return P(a ≻ b) of all responses to one prompt.

    Args:
        scores: reward of each response; None where no source of reward applies. m
        temperature: τ, reward units; 0: the higher reward always wins, and equal rewards win half.
    """
    return [[None if a is None or b is None else _preferred(a - b, temperature) for b in scores] for a in scores]


def _preferred(difference: float, temperature: float) -> float:
    if not temperature:
        return 0.5 * (1 + (difference > 0) - (difference < 0))
    return 0.5 * (1 + math.tanh(difference / temperature / 2))  # σ without overflow


def win_rates(preferred: Preferences) -> list[float | None]:
    """Return how often each response wins against all of them, itself included; None without a reward."""
    return [_mean(row) for row in preferred]


def win_shares(preferred: Preferences) -> list[float | None]:
    """Return how often each response wins against the others; None without a reward or another that has one."""
    return [_mean([p for j, p in enumerate(row) if j != i]) for i, row in enumerate(preferred)]


def _mean(row: Sequence[float | None]) -> float | None:
    known = [p for p in row if p is not None]
    return sum(known) / len(known) if known else None
