"""How reliable a reward model is: statistics on pairs of unseen prompts.

A pair's margin is score(chosen) − score(rejected), not normalised: it is above 0 where the model agrees with the label.
"""

import math
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95  # of the interval of an accuracy


@dataclass(frozen=True)
class Bucket:
    """A bucket of pairs, and the share on which the model agrees with the label."""

    low: float
    """Smallest value in the bucket."""
    high: float
    """Largest value in the bucket."""
    pairs: int
    accuracy: float


@dataclass(frozen=True)
class Point:
    """One point of a calibration curve."""

    probability: float
    """Mean probability that the model assigns to the answer it prefers."""
    observed: float
    """Share of these pairs whose label agrees."""
    pairs: int


def accuracy(margins: Sequence[float]) -> float:
    """Return the share of pairs that the model orders as the label does; a tie counts as wrong."""
    return sum(margin > 0 for margin in margins) / len(margins)


def wilson(successes: int, total: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, which is also valid near 0 and 1 and for few observations.

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n). Wilson 1927, "Probable inference, the law of succession, and
    statistical inference".
    """
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    p, weight = successes / total, z * z / total
    half = z * math.sqrt(p * (1 - p) / total + weight / (4 * total))
    low, high = (p + weight / 2 - half) / (1 + weight), (p + weight / 2 + half) / (1 + weight)
    return (low if successes else 0.0), (high if successes < total else 1.0)  # exact ends: rounding could put p outside


def buckets(values: Sequence[float], margins: Sequence[float], *, count: int = 4) -> list[Bucket]:
    """Return the accuracy in buckets of about equal size, of pairs sorted by a value; equal values share a bucket.

    Args:
        values: value of each pair, by which pairs are sorted. N
        margins: margins of the same pairs. N
        count: number of buckets; fewer if there are too few distinct values.
    """
    ordered = sorted(values)
    cuts = sorted({ordered[len(ordered) * i // count] for i in range(1, count)})
    inside: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for pair in zip(values, margins, strict=True):
        inside[bisect_right(cuts, pair[0])].append(pair)
    result = []
    for _, pairs in sorted(inside.items()):
        mine, theirs = zip(*pairs, strict=True)
        result.append(Bucket(min(mine), max(mine), len(pairs), accuracy(theirs)))
    return result


def calibration_curve(margins: Sequence[float], *, bins: int = 5) -> list[Point]:
    """Return how often the label agrees with the preferred answer, by its probability σ(|margin|).

    Bins have equal width over [½, 1]; bins without pairs are left out. A tie counts as one half.
    """
    inside: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for margin in margins:
        probability = 1 / (1 + math.exp(-abs(margin)))
        agrees = 0.5 if margin == 0 else float(margin > 0)
        inside[min(int((probability - 0.5) * 2 * bins), bins - 1)].append((probability, agrees))
    result = []
    for _, pairs in sorted(inside.items()):
        probabilities, observed = zip(*pairs, strict=True)
        result.append(Point(statistics.fmean(probabilities), statistics.fmean(observed), len(pairs)))
    return result


def calibration_error(curve: Sequence[Point]) -> float:
    """Return the expected calibration error Σ |probability − observed| · share of the pairs.

    Guo et al. 2017, arXiv:1706.04599, Eq. 3.
    """
    total = sum(point.pairs for point in curve)
    return sum(abs(point.probability - point.observed) * point.pairs / total for point in curve)


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None if either side is constant."""
    try:
        return statistics.correlation(first, second)
    except statistics.StatisticsError:
        return None


def shorter_wins(chosen: Sequence[int], rejected: Sequence[int]) -> float:
    """Return the accuracy of the rule "the shorter answer is better", from lengths; a tie counts as one half."""
    return sum(0.5 if a == b else float(a < b) for a, b in zip(chosen, rejected, strict=True)) / len(chosen)


@dataclass(frozen=True)
class CommonErrors:
    """How two models err on the same labelled pairs; a tie is an error."""

    pairs: int
    both_wrong: int
    first_wrong: int
    """Only the first is."""
    second_wrong: int
    """Only the second is."""
    phi: float | None
    """Correlation of being wrong: 0 where errors are independent, 1 where they are the same; None where one model is
    always right or always wrong."""

    @property
    def expected(self) -> float:
        """Pairs on which both would be wrong if their errors were independent."""
        return (self.both_wrong + self.first_wrong) * (self.both_wrong + self.second_wrong) / self.pairs


def common_errors(first: Sequence[float], second: Sequence[float]) -> CommonErrors:
    """Return how two models err together, given the label: plain agreement counts what both get right as well.

    φ = (n₁₁ n₀₀ − n₁₀ n₀₁) / √(n₁. n₀. n.₁ n.₀). Yule 1912, "On the methods of measuring association".

    Args:
        first: margins of one model on the pairs. N
        second: of the other. N
    """
    wrong = [(a <= 0, b <= 0) for a, b in zip(first, second, strict=True)]
    both, none = wrong.count((True, True)), wrong.count((False, False))
    one, other = wrong.count((True, False)), wrong.count((False, True))
    spread = (both + one) * (other + none) * (both + other) * (one + none)
    return CommonErrors(
        len(wrong), both, one, other, (both * none - one * other) / math.sqrt(spread) if spread else None
    )
