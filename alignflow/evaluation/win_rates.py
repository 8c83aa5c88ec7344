"""Which of two policies answers better, and whether the difference is significant; statistics are paired by prompt.

Both policies answer the same P prompts, so the difficulty of a prompt cancels out. The bootstrap resamples prompts.
If policies give several answers to a prompt, every answer is compared with every answer of the other policy. The
mean of these comparisons is the outcome of the prompt, and each prompt has the same weight. A pair that does not count
(a judge did not see it, an answer is cut off) is NaN; a prompt without any other pair is left out and counted.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

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
class Rate:
    """A rate with its interval and the test of whether it is one half."""

    rate: float
    interval: Interval
    p_value: float
    """Two-sided. Null hypothesis: the rate is one half."""
    adjusted_p: float
    """The p-value after Holm's correction over its family of tests; equal to `p_value` for a single test."""
    prompts: int
    """P, the number of prompts compared."""

    def settled(self, confidence: float) -> bool:
        """Return whether the rate differs from one half, both by the interval and by the corrected test.

        Both are needed because each has a weakness: a percentile interval has no width when every prompt is a
        win (three wins of three would look certain), and the test ignores ties.
        """
        excludes_half = self.interval.low > 0.5 or self.interval.high < 0.5
        return excludes_half and self.adjusted_p < 1 - confidence

    def won(self, confidence: float) -> bool:
        """Say whether the rate is settled above one half."""
        return self.settled(confidence) and self.rate > 0.5


@dataclass(frozen=True)
class WinRate(Rate):
    """How often one policy's answer beats another's over P prompts.

    ``rate`` is the mean over prompts of the share of pairs won, a tie half a win; with one answer a prompt
    (wins + ½ ties) / P. The test is exact, of "either policy is as likely the better one on a prompt"; see
    `sign_flip_test`.
    """

    wins: int
    """Prompts with more won pairs of answers than lost ones."""
    ties: int
    losses: int
    left_out: int
    """Prompts without a pair that counts."""


@dataclass(frozen=True)
class Mean:
    """A mean of one value per prompt, with its bootstrap interval."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges on the same pairs of answers."""

    share: float
    """Share of pairs with the same outcome (win, tie or loss) by both judges."""
    kappa: float | None
    """Cohen's κ, agreement beyond chance; None if both judges give one and the same outcome to all pairs."""
    pairs: int


def same_order(prompt_ids: Sequence[str], reference_ids: Sequence[str]) -> NDArray[np.intp]:
    """Return the indices that sort a policy's rows in the order of the reference's rows.

    Args:
        prompt_ids: Prompt of each of the policy's rows. (P,)
        reference_ids: Prompt of each of the reference's rows. (P,)

    Returns:
        ``order`` with ``prompt_ids[order[i]] == reference_ids[i]``. (P,)

    Raises:
        PromptMismatchError: A prompt occurs twice, or only in one of both lists.
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
    """Return the result of every pair of answers to each prompt: 1 for a win, ½ for a tie, 0 for a loss.

    oᵢₐᵦ = ½ (1 + sign(sᵢₐ − rᵢᵦ))

    Args:
        scores: Score of each of the policy's k answers to each prompt; any scale, higher is better. (P, k)
        reference_scores: The same for the reference, same order of prompts. (P, m)

    Returns:
        Outcomes; the first is that of both first answers. (P, k, m)

    Raises:
        ValueError: The shapes differ, there is no answer, or a score is not finite.
    """
    if scores.ndim != 2 or reference_scores.ndim != 2 or len(scores) != len(reference_scores):
        raise ValueError(f"scores must be (P, k) and (P, m), got {scores.shape} and {reference_scores.shape}")
    if not (scores.size and reference_scores.size):
        raise ValueError("there is no prompt to compare on")
    if not (np.isfinite(scores).all() and np.isfinite(reference_scores).all()):
        raise ValueError("a score is not a finite number")
    return 0.5 * (1 + np.sign(scores[:, :, None] - reference_scores[:, None, :]))


def bootstrap_interval(values: Floats, resampling: Resampling) -> Interval:
    """Return the percentile bootstrap interval of the mean of one value per prompt.

    [Q_{α/2}, Q_{1−α/2}] of x̄* = (1/P) Σⱼ nⱼ xⱼ,  n ~ Multinomial(P, share of each distinct value xⱼ),
    α = 1 − confidence

    The function draws how often each distinct value occurs. This has the same distribution as drawing P prompts with
    replacement, but needs only a few columns instead of P and does not depend on the order of the prompts.
    Percentile interval: Efron and Tibshirani 1993, *An Introduction to the Bootstrap*, chapter 13.

    Args:
        values: One value per prompt. (P,)
        resampling: Number of resamples, confidence and seed.

    Returns:
        The interval. Its width is 0 if all values are equal.
    """
    distinct, counts = np.unique(values, return_counts=True)
    random = np.random.default_rng(resampling.seed)
    drawn = random.multinomial(values.size, counts / values.size, size=resampling.samples)
    means = drawn @ distinct / values.size
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(float(low), float(high))


def sign_flip_test(balances: NDArray[np.int64]) -> float:
    """Return the exact two-sided p-value of the randomisation test for paired values.

    p = P(|Σᵢ εᵢ bᵢ| ≥ |Σᵢ bᵢ|),  εᵢ = ±1 equally likely and independent

    If neither policy is better, both signs of a prompt's balance are equally likely. Fisher 1935, *The Design of
    Experiments*, section 21. With one answer per prompt (bᵢ of −1, 0, 1) this is the sign test. The distribution of
    T = ½ Σ (1 + εᵢ) |bᵢ| is the inverse Fourier transform of Πᵢ ½ (1 + exp(−2πi |bᵢ| f)).

    Args:
        balances: Pairs of answers won minus pairs lost on each prompt, in one unit. (P,)

    Returns:
        Probability of a sum at least this far from 0; 1 if all balances are 0. Its error is about 1e-14.
    """
    sizes, counts = np.unique(np.abs(balances), return_counts=True)
    total = int(sizes @ counts)
    frequencies = np.arange(total + 1) / (total + 1)
    factors = [((1 + np.exp(-2j * np.pi * size * frequencies)) / 2) ** n for size, n in zip(sizes, counts, strict=True)]
    chances = np.fft.ifft(np.prod(factors, axis=0)).real
    sums = 2 * np.arange(total + 1) - total
    p_value = chances[np.abs(sums) >= abs(int(balances.sum()))].sum()
    return float(np.clip(p_value, 0, 1))


FINEST = 5040
"""Balances of prompts with different numbers of pairs are brought to one denominator, at most this one."""


def rate_of(each: Floats, resampling: Resampling) -> WinRate:
    """Return the win rate over pairs of answers; interval and test are over prompts.

    rate = (1/P) Σᵢ oᵢ,  oᵢ = (1/nᵢ) Σⱼ oᵢⱼ

    The test needs whole numbers: it takes the balances 2oᵢ − 1 in units of 1 / lcm(n₁, …, n_P). Where that is finer
    than 1 / `FINEST`, they are rounded to it; that is symmetric, so the test stays exact.

    Args:
        each: 1 for a win, ½ for a tie, 0 for a loss, NaN for a pair that does not count. (P, n)
        resampling: How prompts are resampled for the interval.

    Returns:
        Counts, rate, bootstrap interval and sign-flip test, over the prompts that have a pair.

    Raises:
        ValueError: There is no prompt with a pair.
    """
    counted = np.isfinite(each)
    pairs = counted.sum(1)
    kept = pairs > 0
    if not kept.any():
        raise ValueError("there is no prompt to compare on")
    won = np.where(counted, np.rint(2 * each - 1), 0).sum(1)[kept]
    pairs = pairs[kept]
    unit = min(math.lcm(*set(pairs.tolist())), FINEST)
    p_value = sign_flip_test(np.rint(won * unit / pairs).astype(np.int64))
    by_prompt = 0.5 * (1 + won / pairs)
    return WinRate(
        rate=float(by_prompt.mean()),
        interval=bootstrap_interval(by_prompt, resampling),
        p_value=p_value,
        adjusted_p=p_value,
        prompts=pairs.size,
        wins=int((won > 0).sum()),
        ties=int((won == 0).sum()),
        losses=int((won < 0).sum()),
        left_out=int((~kept).sum()),
    )


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return the p-values of a family of m tests with Holm's correction.

    p̃₍ᵢ₎ = min(1, max_{j ≤ i} (m − j + 1) · p₍ⱼ₎),  p₍₁₎ ≤ … ≤ p₍ₘ₎

    Holm 1979, *A Simple Sequentially Rejective Multiple Test Procedure*: if tests with p̃ < α are
    rejected, the probability of any false rejection is at most α, for tests with any dependence.

    Args:
        p_values: One per test, in any order.

    Returns:
        The corrected p-values, in the same order.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        corrected[i] = min(1.0, largest)
    return tuple(corrected)


Tested = TypeVar("Tested", bound=Rate)


def corrected(family: Mapping[str, Tested]) -> dict[str, Tested]:
    """Return the rates of one family of comparisons with Holm's correction over all of them."""
    adjusted = holm([rate.p_value for rate in family.values()])
    return {name: replace(rate, adjusted_p=p) for (name, rate), p in zip(family.items(), adjusted, strict=True)}


def mean(values: Floats, resampling: Resampling) -> Mean:
    """Return the mean of one value per prompt with its interval; for differences, this is a paired comparison."""
    return Mean(float(values.mean()), bootstrap_interval(values, resampling))


def agreement(first: Floats, second: Floats) -> Agreement:
    """Return the agreement of two judges on the same pairs of answers.

    κ = (pₒ − pₑ) / (1 − pₑ),  pₒ = share of equal outcomes,  pₑ = Σ_c share₁(c) · share₂(c)

    Cohen 1960, *A Coefficient of Agreement for Nominal Scales*; c runs over win, tie and loss.

    Args:
        first: Outcomes by one judge. (N,)
        second: Outcomes by the other, same pairs of answers. (N,)

    Raises:
        ValueError: The shapes differ or there is no pair.
    """
    if first.shape != second.shape or not first.size:
        raise ValueError(f"outcomes must be two aligned (N,) arrays, got {first.shape} and {second.shape}")
    share = float((first == second).mean())
    chance = sum(float((first == c).mean() * (second == c).mean()) for c in np.unique(np.concatenate((first, second))))
    return Agreement(share, (share - chance) / (1 - chance) if chance < 1 else None, first.size)
