"""The comparison of the policies, as the last stage wrote it, for a terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

DATA = Path("reports/comparison.json")
WORDS = Path("reports/verdict.json")
PAGE = Path("reports/comparison.html")

PolicyRow = Mapping[str, Any]
"""An entry of ``reports/comparison.json``; its keys are documented in docs/metrics.md."""


def read(root: Path) -> list[PolicyRow]:
    """Return one row a policy; empty when there is no comparison yet."""
    path = root / DATA
    rows: list[PolicyRow] = json.loads(path.read_text()) if path.exists() else []
    return rows


def verdict(root: Path) -> list[str]:
    """Return the verdict in words, one statement a line; empty when there is none yet."""
    path = root / WORDS
    lines: list[str] = json.loads(path.read_text())["lines"] if path.exists() else []
    return lines


def best(rows: Sequence[PolicyRow]) -> str:
    """Return the policy to try first: one that is shown to be better, then by the judge that likes it least."""

    def rank(row: PolicyRow) -> tuple[bool, float]:
        rates = [judge["win_rate"] for judge in row.get("judges", {}).values()]
        return row.get("standing") == "better", min([float(row.get("win_rate") or 0), *rates])

    return str(max(rows, key=rank)["policy"])


def flat(row: PolicyRow) -> dict[str, str | float]:
    """Return the part of an entry that fits one row of a table: its texts and numbers."""
    return {key: value for key, value in row.items() if isinstance(value, str | int | float)}


def table(rows: Sequence[PolicyRow]) -> "Table":
    """Return the comparison as a table for a terminal."""
    from rich.table import Table

    judges = list(dict.fromkeys(judge for row in rows for judge in row.get("judges", {}) if judge != "score"))
    drawn = Table(
        title="Policies on held-out prompts",
        caption=f"judges: wins by {', '.join(judges)}; even: wins at equal length" if judges else None,
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for head in ("policy", "wins", "interval", "judges", "even", "score", "KL", "tokens", "cut", "time", "GiB"):
        drawn.add_column(head, justify="left" if head == "policy" else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(
            str(row["policy"]),
            _number(row, "win_rate", ".2f"),
            f"{_number(row, 'win_rate_low', '.2f')}–{_number(row, 'win_rate_high', '.2f')}",
            " ".join(_number(row.get("judges", {}).get(judge, {}), "win_rate", ".2f") for judge in judges) or "–",
            _number(row.get("judges", {}).get("score", {}).get("length_controlled", {}), "value", ".2f"),
            _number(row, "score_mean", "+.2f"),
            _number(row, "kl_reference", ".2f"),
            _number(row, "response_length_mean", ".0f"),
            _number(row, "truncated_fraction", ".0%"),
            _number(row, "train_seconds", ".0f", " s"),
            _number(row, "peak_memory_gib", ".2f"),
        )
    return drawn


def measured(reports: Mapping[str, Mapping[str, float]]) -> "Table":
    """Return the metrics of single reports side by side, for a run without the comparison."""
    from rich.table import Table

    drawn = Table("", *reports, box=None, pad_edge=False)
    for key in dict.fromkeys(key for metrics in reports.values() for key in metrics):
        drawn.add_row(key, *(_number(metrics, key, ".4g") for metrics in reports.values()))
    return drawn


def _number(row: PolicyRow, key: str, form: str, unit: str = "") -> str:
    value = row.get(key)
    return "–" if value is None or isinstance(value, str) else f"{value:{form}}{unit}"
