"""Algorithms along their training: compared at equal distance from the reference, and watched for over-optimisation.

Gao et al. 2023, *Scaling Laws for Reward Model Overoptimization* (arXiv:2210.10760): the gain is close to linear
in √KL near the reference, and the proxy continues to rise after the true reward has begun to fall.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignflow.evaluation.win_rates import Floats, Interval, Mean, Resampling, mean


@dataclass(frozen=True)
class Trajectory:
    """One algorithm's snapshots in training order, the reference first (KL 0), on the same P prompts."""

    kl: Floats
    """To the reference, nats a response. (snapshots, P)"""
    values: Mapping[str, Floats]
    """Values by judge, the proxy among them. (snapshots, P)"""


@dataclass(frozen=True)
class EqualKl:
    """What the algorithms reach at the same KL, as the mean gain over the reference."""

    levels: tuple[float, ...]
    """Nats a response, ascending; the last is the smallest final KL of all algorithms."""
    gains: Mapping[str, tuple[Mean, ...]]
    """By algorithm, a value a level."""
    leads: tuple["Lead", ...]
    """The leader at each level."""


@dataclass(frozen=True)
class Lead:
    """Who is ahead at a level of KL, and by how much over the next one, compared prompt by prompt."""

    first: str
    second: str
    difference: Mean


@dataclass(frozen=True)
class Fall:
    """A judge fell from a snapshot to the end of training while the proxy rose."""

    since: int
    """Index of the snapshot; 0 is the reference."""
    judge: float
    """Change of the judge's mean since then, < 0."""
    proxy: float
    """Change of the proxy's mean since then, > 0."""


def at_equal_kl(paths: Mapping[str, Trajectory], judge: str, levels: int, resampling: Resampling) -> EqualKl | None:
    """Compare algorithms at common levels of KL to the reference.

    gₐ(κ) = (1 − w) vⱼ₋₁ + w vⱼ − v₀,  w = (√κ − √kⱼ₋₁) / (√kⱼ − √kⱼ₋₁),  j the first snapshot with kⱼ ≥ κ

    k and v are means over prompts. Interpolated in √KL, in which the gain is nearly linear (see above): in KL
    itself the first stretch, from the reference, would be read far too low. Levels are spaced evenly in √KL.
    Each resample of prompts is the same for all algorithms, so that a lead is a paired comparison; a resample
    whose KL ends below a level gives its last snapshot.

    Args:
        paths: By algorithm; all on the same prompts.
        judge: Which of `Trajectory.values` is compared.
        levels: How many levels.
        resampling: How intervals are drawn, by prompt.

    Returns:
        Gains and leads; None when fewer than two algorithms have moved away from the reference.

    Raises:
        ValueError: The paths are not on the same number of prompts.
    """
    moved = {name: path for name, path in paths.items() if path.kl.mean(1)[-1] > 0}
    if len(moved) < 2:
        return None
    prompts = {path.kl.shape[1] for path in moved.values()}
    if len(prompts) > 1:
        raise ValueError(f"paths on different numbers of prompts: {sorted(prompts)}")
    furthest = min(float(path.kl.mean(1)[-1]) for path in moved.values())
    at = furthest * (np.arange(1, levels + 1) / levels) ** 2
    size = prompts.pop()
    random = np.random.default_rng(resampling.seed)
    drawn = random.multinomial(size, np.full(size, 1 / size), size=resampling.samples) / size
    everyone = np.full((1, size), 1 / size)
    gains = {name: _gains(path, judge, at, everyone)[0] for name, path in moved.items()}
    resampled = {name: _gains(path, judge, at, drawn) for name, path in moved.items()}

    def read(value: float, many: Floats) -> Mean:
        tail = (1 - resampling.confidence) / 2
        low, high = np.quantile(many, (tail, 1 - tail))
        return Mean(float(value), Interval(float(low), float(high)))

    def lead(level: int) -> Lead:
        first, second = sorted(gains, key=lambda name: -gains[name][level])[:2]
        ahead = gains[first][level] - gains[second][level]
        return Lead(first, second, read(ahead, resampled[first][:, level] - resampled[second][:, level]))

    return EqualKl(
        levels=tuple(at.tolist()),
        gains={n: tuple(read(gains[n][i], resampled[n][:, i]) for i in range(levels)) for n in gains},
        leads=tuple(lead(i) for i in range(levels)),
    )


def over_optimised(path: Trajectory, proxy: str, judge: str, resampling: Resampling) -> Fall | None:
    """Say whether a judge fell while the proxy rose, from any snapshot to the end of training.

    From snapshot j: paired differences of the last snapshot to it, the judge's interval below 0 and the
    proxy's above 0. All m earlier snapshots are tested, so each interval has confidence 1 − α/m (Bonferroni):
    the highest of many noisy snapshots would otherwise seem to be followed by a fall. If there are several, the
    largest fall is returned.

    Args:
        path: The algorithm's snapshots.
        proxy: Name of what training maximised.
        judge: Name of the judge.
        resampling: How intervals are drawn, by prompt.
    """
    earlier = len(path.kl) - 1
    if earlier < 1:
        return None
    strict = replace(resampling, confidence=1 - (1 - resampling.confidence) / earlier)

    def changes(name: str) -> Sequence[Mean]:
        values = path.values[name]
        return [mean(values[-1] - values[j], strict) for j in range(earlier)]

    falls = [
        Fall(j, low.value, high.value)
        for j, (low, high) in enumerate(zip(changes(judge), changes(proxy), strict=True))
        if low.interval.high < 0 < high.interval.low
    ]
    return min(falls, key=lambda fall: fall.judge, default=None)


def _gains(path: Trajectory, judge: str, at: Floats, weights: Floats) -> Floats:
    """Return the gain at each level for each row of prompt weights (B, P). (B, levels)"""
    distance = np.sqrt(weights @ path.kl.T)  # (B, snapshots)
    gain = weights @ (path.values[judge] - path.values[judge][0]).T
    reached = np.maximum.accumulate(distance, axis=1)
    rows, out = np.arange(len(weights)), []
    for level in np.sqrt(at):
        j = np.clip((reached < level).sum(1), 1, distance.shape[1] - 1)
        before, after = distance[rows, j - 1], distance[rows, j]
        span = np.where(after > before, after - before, 1)
        share = np.clip((level - before) / span, 0, 1)
        out.append((1 - share) * gain[rows, j - 1] + share * gain[rows, j])
    return np.stack(out, axis=1)
