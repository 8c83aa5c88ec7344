"""A comparison as a stage makes it: reports on disk, table and verdict in the log, records for tracking."""

from collections.abc import Mapping
from pathlib import Path

from tasks.comparison import export, table
from tasks.comparison.reports import write_reports
from tasks.policies import in_order
from tasks.running.stage import Stage
from tasks.tracking import recorder


def compare_tracked(stage: Stage, evaluated: Path = Path(), opened: str = "") -> Mapping[str, float]:
    """Compare the chosen policies, print table and verdict, track the page, the tables and one run per policy.

    Args:
        stage: the running stage.
        evaluated: folder that holds the evaluations and receives the reports.
        opened: how often the test side was opened, if these are its prompts.

    Returns:
        The stage's metrics.
    """
    policies = in_order(stage.params.policies)
    comparison, verdict = write_reports(Path(), policies, stage.params, evaluated=evaluated, opened=opened)
    rows = export.rows(comparison, verdict)
    print("\n".join([table.text(rows, comparison.side), "", *verdict.lines]), flush=True)
    stage.record.artifact(evaluated / "reports")
    stage.record.table("comparison", [table.scalars(row) for row in rows])
    stage.record.table("round_robin", export.round_robin(comparison))
    for result in comparison.results.values():
        # the same keys in every run, so that MLflow's compare view shows the policies side by side
        recorder.nested(stage.record, f"{stage.name}/{result.policy}", export.of_policy(result))
    return export.metrics(comparison)
