"""Draw the comparison as inline SVG whose colours are the page's CSS variables, so that it follows its theme.

Matplotlib lays out axes and ticks with stand-in colours; `_inline` then swaps each for ``var(--name)``
and drops everything that only a standalone file needs. Each panel is its own small figure, so that the
page can put them side by side or below each other without shrinking their text.
"""

import re
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tasks.evaluations import TITLES, Curve
from tasks.outcomes import Comparison, Outcome

INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
POLICY_COLOURS = {policy: f"#0505{i:02x}" for i, policy in enumerate(TITLES)}
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"policy-{policy}" for policy, colour in POLICY_COLOURS.items()
}
"""CSS variable of the page behind each stand-in colour."""

STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
    "text.parse_math": False,  # a metric's name is a name
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
LEARNING_METRICS = (
    "score/mean",
    "rewards/accuracy",
    "rewards/margin",
    "reward/mean",
    "kl/reference",
    "loss",
)
"""Which metrics are drawn, the most telling first; a method shows the first `PANELS` that it has."""
PANELS = 3
POINTS = 300
"""Points a curve is thinned to; more cannot be told apart at this size."""


def win_rates(comparison: Comparison) -> Markup:
    """Draw each policy's win rate with its interval, by both judges, around the 50 % line."""
    outcomes = comparison.candidates[::-1]  # the axis counts upwards, the reader downwards

    def paint(axes: Any) -> None:
        axes.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        for y, outcome in enumerate(outcomes):
            colour = POLICY_COLOURS[outcome.policy]
            for rate, up, marker in ((outcome.score, 0.14, "o"), (outcome.gold, -0.2, "D")):
                low, high = 100 * rate.interval.low, 100 * rate.interval.high
                axes.plot([low, high], [y + up, y + up], color=colour, linewidth=2.5, alpha=0.55)
                face = colour if marker == "o" else PAPER
                axes.plot(100 * rate.rate, y + up, marker, color=colour, markerfacecolor=face, markersize=7)
            axes.text(101.5, y + 0.14, f"{100 * outcome.score.rate:.0f} %", va="center", weight="bold")
            axes.text(101.5, y - 0.2, f"{100 * outcome.gold.rate:.0f} %", va="center", color=MUTED)
        axes.set_yticks(range(len(outcomes)), [outcome.title for outcome in outcomes], color=INK)
        axes.set_ylim(-0.6, len(outcomes) - 0.5)
        axes.set_xlim(0, 100)
        axes.set_xticks(range(0, 101, 25), [f"{x} %" for x in range(0, 101, 25)])
        axes.grid(axis="y", visible=False)

    return _draw("win-rates", "Win rate against the reference, by policy", (5.0, 0.52 * len(outcomes) + 0.4), paint)


def against_kl(comparison: Comparison, judge: str, label: str) -> Markup:
    """Draw one judge's mean against the KL to the reference, one point a policy."""
    points = [(o, o.score_mean if judge == "score" else o.gold_mean) for o in comparison.outcomes.values()]

    def paint(axes: Any) -> None:
        for outcome, mean in points:
            axes.plot(outcome.kl_reference, mean, "o", color=POLICY_COLOURS[outcome.policy], markersize=9)
        axes.margins(0.16)
        _name_points(axes, [(o.kl_reference, mean, o.policy) for o, mean in points])
        axes.set_xlabel("KL to the reference, nats a response")

    return _draw(f"kl-{judge}", f"{label} against KL to the reference", (4.6, 3.1), paint, title=label)


def learning_curves(curve: Curve, policy: str) -> list[Markup]:
    """Draw the most telling metrics of one method over its training steps."""
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
        drawn.append(_draw(f"curve-{policy}-{name}", label, (3.1, 1.75), paint, title=name))
    return drawn


def costs(comparison: Comparison) -> list[Markup]:
    """Draw what each policy's training took: time, tokens and memory."""
    panels = {
        "train_seconds": ("Training time, minutes", 1 / 60),
        "trained_tokens": ("Tokens trained on, thousands", 1 / 1000),
        "peak_memory_gib": ("Peak memory, GiB", 1.0),
    }
    return [_bars(comparison.compared, key, title, scale) for key, (title, scale) in panels.items()]


def _bars(outcomes: tuple[Outcome, ...], key: str, title: str, scale: float) -> Markup:
    heights = {o: scale * getattr(o.cost, key) for o in outcomes[::-1]}

    def paint(axes: Any) -> None:
        names = [outcome.title for outcome in heights]
        colours = [POLICY_COLOURS[outcome.policy] for outcome in heights]
        axes.barh(names, list(heights.values()), color=colours, height=0.62)
        highest = max(heights.values()) or 1.0
        for y, value in enumerate(heights.values()):
            axes.text(value + 0.02 * highest, y, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", va="center")
        axes.set_xlim(0, 1.22 * highest)  # room for the number beside the longest bar
        axes.set_xticks([])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.spines["bottom"].set_visible(False)
        axes.grid(visible=False)

    return _draw(f"cost-{key}", title, (3.3, 2.0), paint, title=title)


def _name_points(axes: Any, points: list[tuple[float, float, str]]) -> None:
    """Write each policy's name beside its point, in its colour; names of a crowd form one column."""
    line, width = 0.08, 0.36  # of the axes: height of a line of text, width of the longest name
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    placed = [((x - left) / (right - left), (y - bottom) / (top - bottom), policy) for x, y, policy in points]
    crowds: list[list[tuple[float, float, str]]] = []
    for each in sorted(placed, key=lambda place: (place[0] > 0.5, place[1])):
        last = crowds[-1][-1] if crowds else None
        if last and abs(each[1] - last[1]) < 1.4 * line and abs(each[0] - last[0]) < width:
            crowds[-1].append(each)
        else:
            crowds.append([each])
    for crowd in crowds:
        leftwards = crowd[0][0] > 0.5  # names grow towards the middle, never over the edge
        edge = min(x for x, _, _ in crowd) - 0.04 if leftwards else max(x for x, _, _ in crowd) + 0.04
        middle = sum(y for _, y, _ in crowd) / len(crowd)
        for i, (_, _, policy) in enumerate(crowd):
            axes.text(
                edge,
                middle + line * (i - (len(crowd) - 1) / 2),
                TITLES[policy],
                color=POLICY_COLOURS[policy],
                transform=axes.transAxes,
                ha="right" if leftwards else "left",
                va="center",
                in_layout=False,
            )


def _thin(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Leave out steps without a value and average neighbours until few enough are left to draw."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    if steps.size <= POINTS:
        return steps, values
    groups = np.array_split(np.arange(steps.size), POINTS)
    return np.array([steps[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])


def _draw(name: str, label: str, size: tuple[float, float], paint: Callable[[Any], None], *, title: str = "") -> Markup:
    # the salt keeps ids of one panel apart from those of another on the same page, and stable between runs
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        paint(axes)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), label, size, VARIABLES)


def _inline(svg: str, label: str, size: tuple[float, float], variables: Mapping[str, str]) -> Markup:
    """Make a standalone SVG a part of the page: its theme, its font, no outside address."""
    body = re.sub(r"<(metadata|style).*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = body[body.index(">") + 1 :]
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]*;?", "", body)
    body = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", body)
    for colour, variable in variables.items():
        body = body.replace(colour, f"var(--{variable})")
    width, height = (72 * inches for inches in size)  # matplotlib draws SVG at 72 points an inch
    # safe to mark: titles and numbers are ours, and matplotlib escapes metric names
    return Markup(f'<svg role="img" aria-label="{Markup.escape(label)}" viewBox="0 0 {width:g} {height:g}">{body}')
