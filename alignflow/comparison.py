"""Which of two policies answers better, and is it real: paired statistics over the same prompts.

Everything here is paired by prompt: both policies answered the same P prompts, so the difficulty of a
prompt cancels and the prompt is the unit that is resampled. No model, file or setting is known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class PromptMismatchError(ValueError):
    """Two policies did not answer the same prompts."""


@dataclass(frozen=True)
class Resampling:
    """How a bootstrap interval is drawn."""

    samples: int
    """Number of resamples."""
    confidence: float
    """Share of the resampled means that the interval covers, in (0, 1)."""
    seed: int
    """Seed of the resampling; the same seed gives the same interval."""


@dataclass(frozen=True)
class Interval:
    """A closed interval."""

    low: float
    high: float


@dataclass(frozen=True)
class WinRate:
    """How often one policy beats another over P prompts; ``rate`` counts a tie as half a win."""

    wins: int
    ties: int
    losses: int
    rate: float
    interval: Interval
    p_value: float
    """Two-sided sign test of "wins and losses are equally likely"."""

    @property
    def prompts(self) -> int:
        """P, the number of prompts compared."""
        return self.wins + self.ties + self.losses

    def settled(self, confidence: float) -> bool:
        """Say whether the rate differs from one half by interval and by sign test alike.

        Both are asked because they fail differently: a percentile interval has no width when every
        prompt is a win (three wins of three would look certain), and the sign test does not see ties.
        """
        excludes_half = self.interval.low > 0.5 or self.interval.high < 0.5
        return excludes_half and self.p_value < 1 - confidence


def same_order(prompt_ids: Sequence[str], reference_ids: Sequence[str]) -> NDArray[np.intp]:
    """Return the indices that bring a policy's rows into the order of the reference's.

    Args:
        prompt_ids: Prompt of each of the policy's rows. (P,)
        reference_ids: Prompt of each of the reference's rows. (P,)

    Returns:
        ``order`` with ``prompt_ids[order[i]] == reference_ids[i]``. (P,)

    Raises:
        PromptMismatchError: A prompt occurs twice, or only on one side.
    """
    for ids in (prompt_ids, reference_ids):
        if len(set(ids)) != len(ids):
            twice = next(each for i, each in enumerate(ids) if each in ids[:i])
            raise PromptMismatchError(f"prompt {twice!r} occurs more than once")
    missing = sorted(set(reference_ids) - set(prompt_ids))
    unknown = sorted(set(prompt_ids) - set(reference_ids))
    if missing or unknown:
        parts = [
            f"{len(ids)} {what} (first: {ids[0]!r})"
            for ids, what in ((missing, "missing"), (unknown, "not known to the reference"))
            if ids
        ]
        raise PromptMismatchError(f"not the same prompts: {', '.join(parts)}")
    position = {each: i for i, each in enumerate(prompt_ids)}
    return np.array([position[each] for each in reference_ids], dtype=np.intp)


def outcomes(scores: Floats, reference_scores: Floats) -> Floats:
    """Return the result on each prompt: 1 for a win, ½ for a tie, 0 for a loss.

    oᵢ = ½ (1 + sign(sᵢ − rᵢ))

    Args:
        scores: Score of the policy's response to each prompt; any scale, higher is better. (P,)
        reference_scores: The same for the reference, same order of prompts. (P,)

    Returns:
        Outcomes, one a prompt. (P,)

    Raises:
        ValueError: The shapes differ, there is no prompt, or a score is not finite.
    """
    if scores.ndim != 1 or scores.shape != reference_scores.shape:
        raise ValueError(f"scores must be two aligned (P,) arrays, got {scores.shape} and {reference_scores.shape}")
    if not scores.size:
        raise ValueError("there is no prompt to compare on")
    if not (np.isfinite(scores).all() and np.isfinite(reference_scores).all()):
        raise ValueError("a score is not a finite number")
    return 0.5 * (1 + np.sign(scores - reference_scores))


def bootstrap_interval(values: Floats, resampling: Resampling) -> Interval:
    """Return the percentile bootstrap interval of the mean of one value a prompt.

    [Q_{α/2}, Q_{1−α/2}] of x̄* = (1/P) Σⱼ nⱼ xⱼ,  n ~ Multinomial(P, share of each distinct value xⱼ),
    α = 1 − confidence

    Drawing how often each distinct value occurs has the same law as drawing P prompts with replacement,
    needs three columns instead of P for outcomes, and cannot depend on the order of the prompts.
    Percentile interval: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 13.

    Args:
        values: One value a prompt. (P,)
        resampling: Number of resamples, confidence and seed.

    Returns:
        The interval. It has no width when all values are equal.
    """
    distinct, counts = np.unique(values, return_counts=True)
    random = np.random.default_rng(resampling.seed)
    drawn = random.multinomial(values.size, counts / values.size, size=resampling.samples)
    means = drawn @ distinct / values.size
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(low), float(high))


def sign_test(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of the sign test; ties are left out.

    p = min(1, 2 · Σ_{k ≥ max(w, l)} C(n, k) / 2ⁿ),  n = w + l

    Conover 1999, *Practical Nonparametric Statistics*, section 3.4. Summed in integers, so it is exact
    for any n.

    Args:
        wins: Prompts on which the policy is better.
        losses: Prompts on which it is worse.

    Returns:
        Probability of a split at least this uneven if both were equally likely; 1 without any.
    """
    n, most = wins + losses, max(wins, losses)
    term, tail = comb(n, most), 0
    for k in range(most, n + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / (1 << n))


def win_rate(scores: Floats, reference_scores: Floats, resampling: Resampling) -> WinRate:
    """Compare a policy with the reference on the same prompts.

    rate = (1/P) Σᵢ oᵢ = (wins + ½ ties) / P

    Args:
        scores: Score of the policy's response to each prompt. (P,)
        reference_scores: The same for the reference, same order of prompts. (P,)
        resampling: How the interval is drawn, by prompt.

    Returns:
        Counts, rate, bootstrap interval and sign test.

    Raises:
        ValueError: As in `outcomes`.
    """
    each = outcomes(scores, reference_scores)
    wins, losses = int((each == 1).sum()), int((each == 0).sum())
    return WinRate(
        wins=wins,
        ties=each.size - wins - losses,
        losses=losses,
        rate=float(each.mean()),
        interval=bootstrap_interval(each, resampling),
        p_value=sign_test(wins, losses),
    )
