"""The charts of the comparison's page."""

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from tasks.comparison.read_trainings import AccuracyBin, Curve, RewardReport
from tasks.comparison.results import Comparison, PolicyResult, PolicyTrajectory
from tasks.comparison.svg import ACCENT, INK, MUTED, PAPER, POLICY_COLOURS, POLICY_MARKERS, draw, name_ends
from tasks.comparison.wording import capital
from tasks.judges import PROXY, judge_title
from tasks.policies import TITLES

LEARNING_METRICS = (
    "score/mean",
    "rewards/accuracy",
    "rewards/margin",
    "reward/mean",
    "kl/reference",
    "loss",
)
"""Metrics to draw, the most informative first; a method shows the first `PANELS` that it has."""
PANELS = 3
POINTS = 300
"""A curve is thinned to this number of points; more cannot be distinguished at this size."""
KL_LABEL = "KL to the reference, nats a response (square-root scale)"


def win_rates(comparison: Comparison) -> Markup:
    """Draw each policy's win rate with its interval, by every judge, around the 50 % line."""
    results = comparison.candidates[::-1]  # the axis counts upwards, the reader downwards
    judges = list(dict.fromkeys(judge for result in results for judge in result.rates))
    line = 0.21  # of an inch: height of a judge's row
    gap = 1.5  # rows between two policies

    def paint(axes: Any) -> None:
        axes.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        block = len(judges) + gap
        for i, result in enumerate(results):
            colour = POLICY_COLOURS[result.policy]
            for j, (judge, rate) in enumerate(result.rates.items()):
                y = i * block + len(judges) - 1 - j
                low, high = 100 * rate.interval.low, 100 * rate.interval.high
                proxy = judge == PROXY
                axes.plot([low, high], [y, y], color=colour, linewidth=2.5, alpha=0.55, solid_capstyle="butt")
                axes.plot(
                    100 * rate.rate,
                    y,
                    "o" if proxy else "D",
                    color=colour,
                    markerfacecolor=colour if proxy else PAPER,
                    markersize=7 if proxy else 5.5,
                    clip_on=False,
                )
                axes.text(-2, y, judge_title(judge), va="center", ha="right", color=MUTED, fontsize=9)
                weight = "bold" if proxy else "normal"
                axes.text(104, y, f"{100 * rate.rate:.0f} %", va="center", weight=weight, fontsize=9)
            axes.text(0, i * block + len(judges) - 0.25, result.title, va="bottom", color=colour, weight="bold")
        axes.set_yticks([])
        axes.set_ylim(-0.7, len(results) * block - 0.2)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{x} %" for x in range(0, 101, 25)])
        axes.grid(axis="y", visible=False)

    height = line * len(results) * (len(judges) + gap) + 0.35
    return draw("win-rates", "Win rate against the reference, by policy and judge", (4.9, height), paint)


def over_optimisation(comparison: Comparison) -> Markup:
    """Draw proxy and independent judges against the KL along training, every algorithm in one plot.

    The unit is the standard deviation of the reference's answers, so that judges of any scale share the axis; the
    independent judges are shown as their mean.
    """

    def paint(axes: Any) -> None:
        ends = []
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for policy, trajectory in comparison.trajectories.items():
            colour, marker = POLICY_COLOURS[policy], POLICY_MARKERS[policy]
            distance = np.sqrt(trajectory.path.kl.mean(1))
            proxy = _standard_gain(trajectory, PROXY)
            axes.plot(distance, proxy, color=colour, linewidth=1.9, marker=marker, markersize=5)
            independent = [_standard_gain(trajectory, judge) for judge in comparison.judges if judge != PROXY]
            if independent:
                axes.plot(
                    distance,
                    np.mean(independent, axis=0),
                    color=colour,
                    linewidth=1.6,
                    linestyle=(0, (3, 2)),
                    marker=marker,
                    markerfacecolor=PAPER,
                    markersize=5,
                )
            ends.append((float(distance[-1]), float(proxy[-1]), policy))
        _root_axis(axes)
        axes.set_xlabel(KL_LABEL)
        name_ends(axes, ends)

    label = "Gain over the reference against KL along training: training reward solid, independent judges dashed"
    return draw("over-optimisation", label, (4.9, 3.3), paint, title="Gain over the reference, standard deviations")


def along_training(comparison: Comparison) -> list[Markup]:
    """Draw each judge's gain against the KL along training with its interval, a panel a judge."""
    drawn = []
    for judge in comparison.judges:

        def paint(axes: Any, judge: str = judge) -> None:
            axes.axhline(0, color=MUTED, linewidth=0.8)
            for policy, trajectory in comparison.trajectories.items():
                colour, gains = POLICY_COLOURS[policy], trajectory.gains[judge]
                distance = np.sqrt(trajectory.path.kl.mean(1))
                low, high = ([getattr(gain.interval, side) for gain in gains] for side in ("low", "high"))
                axes.fill_between(distance, low, high, color=colour, alpha=0.13, linewidth=0)
                middle, marker = [gain.value for gain in gains], POLICY_MARKERS[policy]
                axes.plot(distance, middle, color=colour, linewidth=1.6, marker=marker, markersize=4)
            _root_axis(axes)
            axes.yaxis.get_major_locator().set_params(nbins=5)

        title = capital(judge_title(judge))
        label = f"{title}: gain over the reference against KL along training, by algorithm"
        drawn.append(draw(f"along-{judge}", label, (3.3, 2.1), paint, title=title))
    return drawn


def reward_model(name: str, report: RewardReport) -> list[Markup]:
    """Draw a reward model's accuracy by margin and by length, and its calibration."""
    return [
        _accuracy(f"{name}-margin", "Accuracy by size of its own margin", report.by_margin),
        _accuracy(f"{name}-length", "Accuracy by chosen − rejected, tokens", report.by_length_difference),
        _calibration(name, report),
    ]


def learning_curves(curve: Curve, policy: str) -> list[Markup]:
    """Draw the most informative metrics of one method over its training steps."""
    named = [name for name in LEARNING_METRICS if name in curve.series][:PANELS]
    drawn = []
    for name in named:
        steps, values = _thin(curve.steps, curve.series[name])

        def paint(axes: Any, steps: NDArray[np.float64] = steps, values: NDArray[np.float64] = values) -> None:
            for step in curve.breaks:
                axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            marker = "o" if steps.size == 1 else ""
            axes.plot(steps, values, color=POLICY_COLOURS[policy], linewidth=1.8, marker=marker)
            axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
            axes.yaxis.get_major_locator().set_params(nbins=4)

        label = f"{TITLES[policy]}: {name} by training step"
        drawn.append(draw(f"curve-{policy}-{name}", label, (3.1, 1.75), paint, title=name))
    return drawn


def costs(comparison: Comparison) -> list[Markup]:
    """Draw the cost of each policy's training: time, tokens and memory."""
    panels = {
        "train_seconds": ("Training time, minutes", 1 / 60),
        "trained_tokens": ("Tokens trained on, thousands", 1 / 1000),
        "peak_memory_gib": ("Peak memory, GiB", 1.0),
    }
    return [_bars(comparison.compared, key, title, scale) for key, (title, scale) in panels.items()]


def _bars(results: tuple[PolicyResult, ...], key: str, title: str, scale: float) -> Markup:
    heights = [scale * getattr(result.cost, key) for result in results[::-1]]

    def paint(axes: Any) -> None:
        names = [result.title for result in results[::-1]]
        colours = [POLICY_COLOURS[result.policy] for result in results[::-1]]
        axes.barh(names, heights, color=colours, height=0.62)
        highest = max(heights) or 1.0
        for y, value in enumerate(heights):
            axes.text(value + 0.02 * highest, y, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", va="center")
        axes.set_xlim(0, 1.22 * highest)  # room for the number beside the longest bar
        axes.set_xticks([])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)

    return draw(f"cost-{key}", title, (3.3, 2.0), paint, title=title)


def _accuracy(name: str, title: str, bins: list[AccuracyBin]) -> Markup:
    filled = [each for each in bins if each.pairs and each.accuracy is not None]

    def paint(axes: Any) -> None:
        axes.axhline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        heights = [100 * (each.accuracy or 0) for each in filled]
        axes.bar(range(len(filled)), heights, color=ACCENT, width=0.72)
        for x, (each, height) in enumerate(zip(filled, heights, strict=True)):
            axes.text(x, height + 2, f"{each.pairs}", ha="center", va="bottom", color=MUTED, fontsize=8)
        axes.set_xticks(range(len(filled)), [_range(each) for each in filled], fontsize=7.5)
        axes.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
        axes.set_ylim(0, 118)
        axes.set_xlim(-0.6, max(len(filled), 1) - 0.4)
        axes.grid(axis="x", visible=False)

    return draw(f"accuracy-{name}", title, (3.3, 1.9), paint, title=title)


def _range(one: AccuracyBin) -> str:
    low, high = (None if each is None else f"{each:.3g}".replace("-", "−") for each in (one.low, one.high))
    if low is None:
        return f"< {high}"
    if high is None:
        return f"≥ {low}"
    return f"{low}" if low == high else f"{low} to\n{high}"


def _calibration(name: str, report: RewardReport) -> Markup:
    points = [
        (100 * each.probability, 100 * each.observed, each.pairs)
        for each in report.calibration
        if each.pairs and each.probability is not None and each.observed is not None
    ]

    def paint(axes: Any) -> None:
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if points:
            given, observed, pairs = zip(*points, strict=True)
            sizes = [14 + 110 * n / max(pairs) for n in pairs]
            axes.plot(given, observed, color=ACCENT, linewidth=1.4)
            axes.scatter(given, observed, s=sizes, color=ACCENT, linewidth=0, clip_on=False)
        lowest = 50 if all(each[0] >= 50 for each in points) else 0
        ticks = range(lowest, 101, 25)
        axes.set_xticks(ticks, [f"{x} %" for x in ticks])
        axes.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
        axes.tick_params(axis="x", pad=8)  # does not overlap the lowest label of the other axis
        axes.set_xlim(lowest, 100)
        axes.set_ylim(0, 104)

    title = "Calibration: observed by stated"
    return draw(f"calibration-{name}", title, (3.3, 1.9), paint, title=title)


def _standard_gain(trajectory: PolicyTrajectory, judge: str) -> NDArray[np.float64]:
    """Return the mean gain of each snapshot in standard deviations of the reference's values."""
    spread = float(trajectory.path.values[judge][0].std()) or 1.0
    return np.array([gain.value for gain in trajectory.gains[judge]]) / spread


def _root_axis(axes: Any) -> None:
    """Label an axis of square roots with their squares: round values at about equal distances."""
    _, right = axes.get_xlim()
    step = 10 ** np.floor(np.log10(max(right, 1e-6) ** 2)) / 10
    candidates = [step * k for k in (0, 1, 2, 5, 10, 20, 30, 50, 70, 100)]
    ticks: list[float] = []
    for each in candidates:
        if np.sqrt(each) <= right and (not ticks or np.sqrt(each) - np.sqrt(ticks[-1]) > 0.13 * right):
            ticks.append(each)
    axes.set_xticks(np.sqrt(ticks), [f"{tick:.3g}" for tick in ticks])
    axes.set_xlim(0, right)


def _thin(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leave out steps without a value and average neighbours until few enough are left to draw."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if steps.size <= POINTS:
        return steps, values
    groups = np.array_split(np.arange(steps.size), POINTS)
    return np.array([steps[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])
