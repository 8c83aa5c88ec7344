"""Stage ``compare``: every policy against the reference, as tables, as a page and as metrics.

Reads ``evaluations/``, ``metrics/`` and ``plots/`` of the stages before it; trains and samples nothing.
"""

from collections.abc import Mapping

from tasks.comparison.tracked import compare_tracked
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Compare in the current folder."""
    return compare_tracked(stage)
