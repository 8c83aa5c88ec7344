"""Algorithms along their training: compares them at equal KL to the reference, and detects over-optimisation.

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
    """KL to the reference, nats per response. (snapshots, P)"""
    values: Mapping[str, Floats]
    """Scores by judge, including the proxy. (snapshots, P)"""


@dataclass(frozen=True)
class EqualKl:
    """Mean gain of the algorithms over the reference at equal KL."""

    levels: tuple[float, ...]
    """Nats per response, ascending; the last is the smallest final KL of all algorithms."""
    gains: Mapping[str, tuple[Mean, ...]]
    """By algorithm, one value per level."""
    leads: tuple["Lead", ...]
    """The leader at each level."""


@dataclass(frozen=True)
class Lead:
    """The algorithm with the largest gain at a level of KL, and its paired difference to the second."""

    first: str
    second: str
    difference: Mean


@dataclass(frozen=True)
class Fall:
    """A judge fell from a snapshot to the end of training while the proxy rose."""

    since: int
    """Index of that snapshot; 0 is the reference."""
    judge: float
    """Change of the judge's mean since then, < 0."""
    proxy: float
    """Change of the proxy's mean since then, > 0."""


def at_equal_kl(paths: Mapping[str, Trajectory], judge: str, levels: int, resampling: Resampling) -> EqualKl | None:
    """Compare algorithms at common levels of KL to the reference.

    gₐ(κ) = (1 − w) vⱼ₋₁ + w vⱼ − v₀,  w = (√κ − √kⱼ₋₁) / (√kⱼ − √kⱼ₋₁),  j the first snapshot with kⱼ ≥ κ

    k and v are means over prompts. Interpolation is linear in √KL, because the gain is nearly linear in it (see
    above); interpolation in KL would give far too low values between the reference and the first snapshot. Levels
    have equal distances in √KL. All algorithms share each resample of prompts, so a lead is a paired comparison.
    A resample whose KL ends below a level takes its last snapshot.

    Args:
        paths: Trajectories by algorithm; all on the same prompts.
        judge: Key of `Trajectory.values` to compare.
        levels: Number of levels.
        resampling: How intervals are drawn, by prompt.

    Returns:
        Gains and leads; None when fewer than two algorithms have moved away from the reference.

    Raises:
        ValueError: The paths have different numbers of prompts.
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
    """Return the largest significant fall of a judge during which the proxy rose, or None.

    A fall since snapshot j: of the paired differences between the last snapshot and j, the judge's interval is below 0
    and the proxy's above 0. All m earlier snapshots are tested, so each interval has confidence 1 − α/m (Bonferroni).
    Without this correction, noise makes the highest of many snapshots look like the start of a fall.

    Args:
        path: The algorithm's snapshots.
        proxy: Name of the score that training maximised.
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
