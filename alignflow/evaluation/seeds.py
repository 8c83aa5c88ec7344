"""A difference that was measured with S training seeds on P prompts: an interval that contains both.

Model: xₛᵢ = μ + aₛ + uᵢ + eₛᵢ with the seed's effect a, the prompt's effect u and the rest e. All seeds answer the same
prompts and meet the same answers of the reference, so u is common to them: it is not in the spread over seeds, and a
t interval over the seeds' means alone is too narrow for other prompts. An interval over prompts alone is too narrow
for other seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from alignflow.evaluation.win_rates import Floats, Interval

FEWEST = 3
"""Seeds that an interval over seeds needs: two give a t quantile of 12.7, which settles nothing."""
PRECISION = 50
"""Halvings of the search for a p-value: as exact as a float near 1."""


@dataclass(frozen=True)
class OverSeeds:
    """The mean of a quantity over seeds, with what its errors are made of."""

    by_seed: tuple[float, ...]
    """The mean over prompts of each seed."""
    prompts: int
    """P, the prompts that have a value."""
    seed_error: float
    """Standard error of the mean that the spread over seeds shows."""
    prompt_error: float
    """Standard error of the mean that the spread over prompts shows."""

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.by_seed))

    @property
    def enough(self) -> bool:
        """Say whether there are enough seeds for a verdict."""
        return len(self.by_seed) >= FEWEST

    def reach(self, confidence: float) -> float:
        """Return half the width of the interval.

        √(t²_{S−1} · se²_seeds + t²_{P−1} · se²_prompts),  t: two-sided quantiles

        The variances of independent sources add up. Each has its own t quantile (Zou and Donner 2008, *Construction of
        confidence limits about effect measures*), so the interval is never narrower than one of a single source. The
        rest e is in both errors: it errs on the safe side, mostly where prompts differ little.
        """
        tail = (1 + confidence) / 2
        over_seeds, over_prompts = (float(stdtrit(n - 1, tail)) for n in (len(self.by_seed), self.prompts))
        return float(np.hypot(over_seeds * self.seed_error, over_prompts * self.prompt_error))

    def interval(self, confidence: float) -> Interval:
        """Return the interval of the mean for other seeds and other prompts."""
        reach = self.reach(confidence)
        return Interval(self.value - reach, self.value + reach)

    def p_value(self, null: float) -> float:
        """Return the two-sided p-value of a mean of ``null``: the largest α whose interval contains it.

        1 without any spread, because there is nothing to judge the distance by.
        """
        distance = abs(self.value - null)
        if not distance or not (self.seed_error or self.prompt_error):
            return 1.0
        low, high = 0.0, 1.0  # the interval contains null at confidence high, or nearly
        for _ in range(PRECISION):
            middle = (low + high) / 2
            low, high = (low, middle) if self.reach(middle) >= distance else (middle, high)
        return 1 - high

    def equivalent(self, null: float, margin: float, confidence: float) -> bool:
        """Say whether the mean is shown to differ from ``null`` by less than ``margin``.

        Two one-sided tests (Schuirmann 1987), each at level α = 1 − confidence: the interval at 1 − 2α lies inside
        ±margin.
        """
        found = self.interval(2 * confidence - 1)
        return self.enough and null - margin < found.low and found.high < null + margin


def over_seeds(values: Floats) -> OverSeeds:
    """Return the mean of a quantity, such as a difference of two arms, over seeds and prompts.

    Args:
        values: One value a seed and prompt; the same seeds and prompts of both arms. NaN where a prompt has no value
            with a seed. (S, P)

    Raises:
        ValueError: A seed has fewer than two values, or there are fewer than two seeds.
    """
    known = np.isfinite(values)
    if values.ndim != 2 or len(values) < 2 or (known.sum(1) < 2).any():
        raise ValueError(f"values must be (S, P) of two seeds and prompts at least, got {values.shape}")
    by_prompt = np.where(known, values, 0).sum(0)[known.any(0)] / known.sum(0)[known.any(0)]
    by_seed = np.where(known, values, 0).sum(1) / known.sum(1)
    return of_seeds(by_seed.tolist(), float(by_prompt.std(ddof=1) / np.sqrt(by_prompt.size)), by_prompt.size)


def of_seeds(by_seed: Sequence[float], prompt_error: float, prompts: int) -> OverSeeds:
    """Return the same of a quantity that is no mean over prompts, from its standard error over prompts."""
    seed_error = float(np.std(by_seed, ddof=1) / np.sqrt(len(by_seed)))
    return OverSeeds(tuple(by_seed), prompts, seed_error, prompt_error)
