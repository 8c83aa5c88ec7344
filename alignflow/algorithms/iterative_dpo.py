"""Iterative DPO: preference pairs from the current model's own answers, one shard of prompts a round.

Round i samples k answers to each prompt of shard i with the model of round i−1, scores them, pairs the best with
the worst, and trains one DPO round on those pairs (Xiong et al. 2023, arXiv:2312.11456; Dong et al. 2024,
arXiv:2405.07863, Algorithm 2). The loss is that of ``dpo``; here is what is particular: shards and pairs. Scores may
be corrected for length before the choice (there Eq. 9, in characters; here in tokens), since a reward model's errors
favour a length.
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
    """Return the indices of one of m disjoint shards that together cover all prompts, in random order.

    So the first few of a shard are a random sample of it.

    Args:
        count: prompts in all.
        shard: which one, from 1.
        of: m.
        seed: of the order in which prompts are dealt out.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order[shard - 1 :: of]


def choose_pair(
    scores: Sequence[float | None],
    texts: Sequence[str],
    lengths: Sequence[int],
    *,
    min_margin: float,
    length_penalty: float,
) -> Choice:
    """Pair the answer of highest score − λ·length with the lowest.

    Equal texts, a tie, or a difference below the margin give no pair; of equal scores the first is taken. An
    empty answer may be the worst, never the best. The choice, the tie and the margin are all of corrected scores.

    Args:
        scores: reward of each answer, None where no source of reward applies. k
        texts: the answers. k
        lengths: tokens of the answers. k
        min_margin: least difference in corrected score.
        length_penalty: λ, reward units a token.
    """
    corrected = {
        i: score - length_penalty * length
        for i, (score, length) in enumerate(zip(scores, lengths, strict=True))
        if score is not None
    }
    filled = [i for i in corrected if texts[i].strip()]
    if len(corrected) < 2 or not filled:
        return Choice(0, 0, "fewer than two answers with a reward" if len(corrected) < 2 else "all answers empty")
    best = max(filled, key=lambda i: corrected[i])
    worst = min(corrected, key=lambda i: corrected[i])
    margin = corrected[best] - corrected[worst]
    reason = None
    if margin <= 0:
        reason = "tie"
    elif texts[best].strip() == texts[worst].strip():
        reason = "equal texts"
    elif margin < min_margin:
        reason = "margin too small"
    return Choice(best, worst, reason)
