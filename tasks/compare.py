"""Stage ``compare``: every policy against the reference, as tables, as a page and as metrics.

Reads ``evaluations/``, ``metrics/`` and ``plots/`` of the stages before it; trains and samples nothing.
"""

from collections.abc import Mapping
from pathlib import Path

from tasks.comparison import export, table
from tasks.comparison.reports import write_reports
from tasks.policies import in_order
from tasks.running.stage import Stage
from tasks.tracking import recorder


def work(stage: Stage) -> Mapping[str, float]:
    """Compare in the current folder, print table and verdict, track the page, the tables and one run per policy."""
    comparison, verdict = write_reports(Path(), in_order(stage.params.policies), stage.params)
    rows = export.rows(comparison, verdict)
    print("\n".join([table.text(rows), "", *verdict.lines]), flush=True)
    stage.record.artifact(Path("reports"))
    stage.record.table("comparison", [table.scalars(row) for row in rows])
    stage.record.table("round_robin", export.round_robin(comparison))
    for result in comparison.results.values():
        # the same keys in every run, so that MLflow's compare view shows the policies side by side
        recorder.nested(stage.record, f"compare/{result.policy}", export.of_policy(result))
    return export.metrics(comparison)
