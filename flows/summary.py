"""The comparison of the policies, as the last stage wrote it, for a terminal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.comparison.table import PolicyRow, cell
from tasks.policies import POLICIES

if TYPE_CHECKING:
    from rich.table import Table

DATA = Path("reports/comparison.json")
WORDS = Path("reports/verdict.json")
PAGE = Path("reports/comparison.html")


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
    """Return the policy to try first: a better one if there is one, then the highest of the lowest win rates."""

    def rank(row: PolicyRow) -> tuple[bool, float]:
        rates = [judge["win_rate"] for judge in row.get("judges", {}).values()]
        return row.get("standing") == "better", min([float(row.get("win_rate") or 0), *rates])

    return str(max((row for row in rows if not POLICIES[str(row["policy"])].control), key=rank)["policy"])


def measured(reports: Mapping[str, Mapping[str, float]]) -> "Table":
    """Return the metrics of single reports side by side, for a run without the comparison."""
    from rich.table import Table

    drawn = Table("", *reports, box=None, pad_edge=False)
    for key in dict.fromkeys(key for metrics in reports.values() for key in metrics):
        drawn.add_row(key, *(cell(metrics, key, ".4g") for metrics in reports.values()))
    return drawn
