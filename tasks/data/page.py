"""Write the page that shows what the data is, what was dropped from it and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import html
from tasks.data.limits import ADVICE

TEMPLATE = Path(__file__).parent / "templates" / "data.html.j2"
LEAST_SHARE = 0.001  # a smaller share is written as "< 0.1 %", not as 0
LEANING = 0.6  # share of pairs from which length predicts the chosen answer


def render(report: Mapping[str, Any]) -> str:
    """Return the page as one HTML text that needs no other file."""
    statistics = report["statistics"]
    content = {
        "report": report,
        "statistics": statistics,
        "headline": headline(report),
        "leaning": leaning(statistics["length_bias"]),
        "bars": bars(statistics["histogram"]),
        "advice": ADVICE,
    }
    return html.render(TEMPLATE, content, {"share": share, "number": number})


def headline(report: Mapping[str, Any]) -> str:
    """Return the verdict in a line."""
    if not report["dropped"]:
        return f"All {number(report['rows'])} rows can be used"
    return f"{number(report['used'])} of {number(report['rows'])} rows can be used"


def leaning(bias: Mapping[str, float]) -> str:
    """Return a sentence on whether length predicts the chosen answer; empty without pairs."""
    if not bias:
        return ""
    if bias["shorter"] > LEANING:
        return f"The chosen answer is the shorter one in {share(bias['shorter'])} of the pairs: length predicts it."
    if bias["longer"] > LEANING:
        return f"The chosen answer is the longer one in {share(bias['longer'])} of the pairs: length predicts it."
    return "Length alone does not predict the chosen answer."


def bars(histogram: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Return the histogram as bars: where each bin begins and how high both are, of 100."""
    if not histogram:
        return []
    most = max(*histogram["chosen"], *histogram["rejected"], 1.0)
    return [
        {"from": edge, "chosen": 100 * good / most, "rejected": 100 * bad / most}
        for edge, good, bad in zip(histogram["edges"], histogram["chosen"], histogram["rejected"], strict=False)
    ]


def share(fraction: float) -> str:
    """Write a share as e.g. ``12 %`` or ``0.4 %``."""
    if 0 < fraction < LEAST_SHARE:
        return "< 0.1 %"
    return f"{100 * fraction:.1f} %" if 0 < fraction < 0.1 else f"{100 * fraction:.0f} %"


def number(value: float) -> str:
    """Write a number with thin spaces between the thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")
