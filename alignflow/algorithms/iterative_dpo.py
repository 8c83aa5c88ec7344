"""Iterative DPO: preference pairs from the current model's own answers, one shard of prompts a round.

Round i samples k answers to each prompt of shard i with the model of round i−1, scores them, pairs the best with
the worst, and trains one DPO round on those pairs (Xiong et al. 2023, arXiv:2312.11456; Xu et al. 2023,
arXiv:2312.16682). The loss is that of ``dpo``; here is what is particular: shards and pairs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """Which two answers make a pair, or why none do."""

    best: int
    worst: int
    dropped: str | None
    """Reason why there is no pair, or None."""


def shard_of(count: int, *, shard: int, of: int, seed: int) -> list[int]:
    """Return the indices of one of m disjoint shards that together cover all prompts.

    Args:
        count: prompts in all.
        shard: which one, from 1.
        of: m.
        seed: of the order in which prompts are dealt out.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return sorted(order[shard - 1 :: of])


def choose_pair(scores: Sequence[float], texts: Sequence[str], *, min_margin: float) -> Choice:
    """Pair the best-scored answer with the worst.

    No pair comes of equal texts, of a tie, or of a difference below the margin; the first of equals is taken.

    Args:
        scores: score of each answer. k
        texts: the answers. k
        min_margin: least difference in score.
    """
    best = max(range(len(scores)), key=lambda i: scores[i])
    worst = min(range(len(scores)), key=lambda i: scores[i])
    margin = scores[best] - scores[worst]
    reason = None
    if margin <= 0:
        reason = "tie"
    elif texts[best].strip() == texts[worst].strip():
        reason = "equal texts"
    elif margin < min_margin:
        reason = "margin too small"
    return Choice(best, worst, reason)
