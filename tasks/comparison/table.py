"""The comparison as a table for a terminal, made of the entries of ``reports/comparison.json`` alone."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from tasks.comparison.wording import VALIDATION_SIDE
from tasks.judges import PROXY

PolicyRow = Mapping[str, Any]
"""An entry of ``reports/comparison.json``; its keys are documented in docs/metrics.md."""
WIDEST = 200
"""Columns of text: no table is cut."""
CAPTION = """wins: % of comparisons won by the training reward
judges: by {judges}
complete: won where neither answer is cut off, by all of these
even: wins of these at equal length
model: wins as predicted from cut-off and length alone"""


def table(rows: Sequence[PolicyRow], side: str = VALIDATION_SIDE) -> Table:
    """Return the comparison as a table for a terminal, from the entries of its report.

    Args:
        rows: an entry a policy.
        side: of the data whose prompts were answered, as a reader sees it.
    """
    judges = list(dict.fromkeys(judge for row in rows for judge in row.get("judges", {}) if judge != PROXY))
    drawn = Table(
        title=f"Policies on unseen prompts of the {side}",
        caption=CAPTION.format(judges=", ".join(judges) or "none"),
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    wins = ("policy", "wins", "interval", "judges", "complete", "even", "model")
    for head in (*wins, "score", "KL", "tokens", "cut", "time", "GiB"):
        drawn.add_column(head, justify="left" if head == "policy" else "right", no_wrap=True)
    for row in rows:
        judged = row.get("judges", {})
        drawn.add_row(
            str(row["policy"]),
            _percent(row, "win_rate"),
            f"{_percent(row, 'win_rate_low')}–{_percent(row, 'win_rate_high')}",
            " ".join(_percent(judged.get(judge), "win_rate") for judge in judges) or "–",
            " ".join(_percent(judged.get(judge, {}).get("complete"), "win_rate") for judge in (PROXY, *judges)),
            _percent(judged.get(PROXY, {}).get("length_controlled"), "value"),
            _percent(judged.get(PROXY), "predicted"),
            cell(row, "score_mean", "+.2f"),
            cell(row, "kl_reference", ".2f"),
            cell(row, "response_length_mean", ".0f"),
            cell(row, "truncated_fraction", ".0%"),
            cell(row, "train_seconds", ".0f", " s"),
            cell(row, "peak_memory_gib", ".2f"),
        )
    return drawn


def text(rows: Sequence[PolicyRow], side: str = VALIDATION_SIDE) -> str:
    """Return the table as plain text, for a log."""
    page = StringIO()
    Console(file=page, width=WIDEST, no_color=True, force_terminal=False).print(table(rows, side))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def scalars(row: PolicyRow) -> dict[str, str | float]:
    """Return the part of an entry that fits one row of a table: its texts and numbers."""
    return {key: value for key, value in row.items() if isinstance(value, str | int | float)}


def cell(row: PolicyRow, key: str, form: str, unit: str = "") -> str:
    """Write the number of a key; a dash where there is none."""
    value = row.get(key)
    return "–" if value is None or isinstance(value, str) else f"{value:{form}}{unit}"


def _percent(row: PolicyRow | None, key: str) -> str:
    value = (row or {}).get(key)
    return "–" if value is None else f"{100 * value:.0f}"
