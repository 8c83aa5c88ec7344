"""The flow over several training seeds: the pipeline once for each, then one verdict over all of them."""

from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger

from flows import pipeline_run, workspace
from flows.align import FlowResult, align
from flows.errors import UserError
from flows.git import checkout_root
from flows.series import Series
from tasks.comparison.inputs import InputError
from tasks.seeds.report import SeedsReport, write_seeds_report

REPORTS = "seeds"
"""Folder of the reports in the checkout; ``reports/`` belongs to one run and to DVC."""


@dataclass(frozen=True)
class SeedsResult:
    """What a run over seeds did."""

    runs: tuple[FlowResult, ...]
    """One a seed."""
    report: SeedsReport
    page: Path


@flow(name="align-over-seeds", persist_result=False)
def align_over_seeds(series: Series) -> SeedsResult:
    """Run the pipeline once for each seed and compare over all seeds; what does not depend on a seed is restored."""
    checkout, seeds = checkout_root(Path.cwd()), len(series.experiments)
    run = workspace.series_run(series.key)
    with workspace.in_use(run), pipeline_run.series(series.key, series.name, seeds) as parent:
        runs = []
        for i, (experiment, overrides) in enumerate(zip(series.experiments, series.overrides, strict=True), start=1):
            get_run_logger().info("seed %d of %d: experiment %s", i, seeds, experiment, extra={"heading": True})
            runs.append(align(overrides, name=experiment, series=series.key))
        report, page = _report(series, checkout / REPORTS)
        parent.artifact(page)
        parent.finish("FINISHED", report.metrics)
    workspace.discard(checkout, run)
    return SeedsResult(tuple(runs), report, page)


def _report(series: Series, folder: Path) -> tuple[SeedsReport, Path]:
    kept = workspace.series_folder(series.key)
    try:
        return write_seeds_report([kept / name for name in series.experiments], folder, series.name)
    except InputError as error:
        raise UserError(str(error)) from None
