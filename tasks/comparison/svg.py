"""Draw inline SVG whose colours are the page's CSS variables, so that it follows its theme.

Matplotlib lays out axes and ticks with stand-in colours; `_inline` then swaps each for ``var(--name)``
and drops everything that only a standalone file needs. Each panel is its own small figure, so that the
page can put them side by side or below each other without shrinking their text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from tasks.policies import POLICIES, TITLES

INK, MUTED, GRID, PAPER, ACCENT = "#010101", "#020202", "#030303", "#040404", "#060606"
POLICY_COLOURS = {policy: f"#0505{i:02x}" for i, policy in enumerate(POLICIES)}
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", ACCENT: "accent"} | {
    colour: f"policy-{policy}" for policy, colour in POLICY_COLOURS.items()
}
"""CSS variable of the page behind each stand-in colour."""
PALETTE = (
    ("#8d97a3", "#7f8a96"),
    ("#65707d", "#a3aeba"),
    ("#1f6feb", "#6ba6ff"),
    ("#0d8f80", "#35c9b5"),
    ("#c96a05", "#f0a34a"),
    ("#b02ec4", "#e07bf0"),
    ("#9a7d0a", "#d9be3f"),
    ("#c2334d", "#ff8095"),
    ("#4b4ac9", "#a3a2ff"),
    ("#0b7fab", "#58c4ec"),
    ("#5d7d1a", "#a9cf54"),
)
"""Colours of the policies in the order of their table, in the light and in the dark theme."""
MARKERS = "oXosD^vPh<>"
"""Shapes of the policies' points in the same order, so that they differ not only in colour."""
POLICY_MARKERS = {policy: MARKERS[i % len(MARKERS)] for i, policy in enumerate(POLICIES)}

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


def theme(policies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return each policy's colour in the light and in the dark theme, whatever else is compared."""
    table = list(POLICIES)
    return {policy: PALETTE[table.index(policy) % len(PALETTE)] for policy in policies}


def name_ends(axes: Any, ends: Sequence[tuple[float, float, str]]) -> None:
    """Write each policy's name right of the axes, beside where its line ends; names keep a line's distance."""
    line = 0.085  # of the axes: height of a line of text
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    placed = sorted(((y - bottom) / (top - bottom), (x - left) / (right - left), policy) for x, y, policy in ends)
    heights: list[float] = []
    for y, _, _ in placed:
        heights.append(max(y, heights[-1] + line) if heights else max(y, line / 2))
    over = max(0.0, heights[-1] - 1 + line / 2) if heights else 0.0
    for i in reversed(range(len(heights))):  # a name above the axes moves down, and so do those below it
        limit = heights[i + 1] - line if i + 1 < len(heights) else heights[i] - over
        heights[i] = min(heights[i], limit)
    for height, (y, x, policy) in zip(heights, placed, strict=True):
        colour = POLICY_COLOURS[policy]
        axes.plot(
            [x, 1.03], [y, height], color=colour, linewidth=0.8, alpha=0.6, transform=axes.transAxes, clip_on=False
        )
        axes.text(1.045, height, TITLES[policy], color=colour, transform=axes.transAxes, va="center")


def draw(name: str, label: str, size: tuple[float, float], paint: Callable[[Any], None], *, title: str = "") -> Markup:
    """Return a panel as a part of the page.

    Args:
        name: unique on the page.
        label: what a screen reader says.
        size: width and height, inches of 72 pixels at the size it is drawn for.
        paint: draws into the axes.
        title: above the axes.
    """
    # the salt makes ids unique on the page, and stable between runs
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
