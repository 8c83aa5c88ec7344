"""The flow: every stage of dvc.yaml as one Prefect task, in a workspace of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows import graph, pipeline_run, stage, summary, workspace
from flows.errors import UserError
from flows.git import checkout_root
from tasks.comparison.table import PolicyRow, scalars
from tasks.running.progress import StepProgress

STOP = stage.Stop()


@dataclass(frozen=True)
class FlowResult:
    """What a flow run did."""

    experiment: str | None
    """Name of the DVC experiment; None when nothing differs from what the user had."""
    in_checkout: bool
    """The user's checkout holds the results."""
    stages: tuple[stage.StageResult, ...]
    left_out: tuple[str, ...]
    """Reports that ``only`` left out, because they need stages that are not up to date."""
    reports: tuple[str, ...]
    """Reports among the stages."""
    comparison: tuple[PolicyRow, ...]
    verdict: tuple[str, ...]
    """The comparison in words, one statement a line."""


def _not_stopped(*_: object) -> bool:
    return not STOP.asked.is_set()


@task(
    task_run_name="{one.name}",
    retries=1,
    retry_delay_seconds=1,
    retry_condition_fn=_not_stopped,
    cache_policy=NO_CACHE,  # DVC is the cache
    persist_result=False,
)
def run_stage(one: graph.Node, root: Path, env: Mapping[str, str], compute: bool = True) -> stage.StageResult:
    """Bring one stage up to date; a failed one is tried once more, and continues from its checkpoint."""
    logger = get_run_logger()

    def say(state: str, text: str, steps: Sequence[StepProgress] = ()) -> None:
        line = text if text.startswith("[") else f"[{one.name}] {text}"
        logger.info("%s", line, extra={"stage": one.name, "stage_state": state, "stage_steps": steps})

    try:
        server = bool(get_current_settings().api.url)
        return stage.run(one, root, say, STOP, env=env, server=server, compute=compute)
    except Exception as error:
        how = "stopped" if STOP.asked.is_set() else "failed"
        say(stage.FAILED, how if isinstance(error, UserError) else f"{how}: {error!r}")
        raise


@flow(name="align", task_runner=ThreadPoolTaskRunner(), persist_result=False)  # type: ignore[arg-type]
def align(
    overrides: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    name: str | None = None,
    series: str = "",
    compute: bool = True,
) -> FlowResult:
    """Run the pipeline of the current checkout.

    Args:
        overrides: ``section.key=value`` changes of params.yaml for this run alone.
        only: stages or groups of stages to run, with everything they need and the reports on them.
        name: of the DVC experiment that keeps the result; by default the flow run's, with a part of its id.
        series: key of the run over seeds that this run is a part of; its files are kept for the comparison over seeds.
        compute: False stops at a stage whose results neither a cache nor a remote has.
    """
    STOP.asked.clear()
    checkout, run = checkout_root(Path.cwd()), str(flow_run.id)[:8]
    with workspace.in_use(run), stage.stoppable(STOP):
        place = workspace.create(run, checkout, overrides, name or f"{flow_run.name}-{run[:4]}", series)
        stages = graph.read(place.path)
        chosen, left_out = graph.select(stages, only)
        get_run_logger().info("%d stages in %s", len(chosen), place.folder, extra={"stage_plan": chosen})
        with pipeline_run.pipeline(place, run, only) as parent:
            futures = _submit(stages, chosen, place.path, parent.env, compute)
            _await(futures)
            results = _collect(futures, place)
            rows = summary.read(place.path) if _compared(stages, results) else []
            _publish(results, rows)
            parent.finish(results, rows)
        reports = [name for name in chosen if stages[name].report]
        result = _deliver(place, results, left_out, reports, rows)
        if series:
            workspace.keep(place)
    workspace.discard(checkout, run)
    return result


def _submit(
    stages: graph.Graph, chosen: Sequence[str], root: Path, env: Mapping[str, str], compute: bool
) -> dict[str, PrefectFuture[stage.StageResult]]:
    futures: dict[str, PrefectFuture[stage.StageResult]] = {}
    for name in chosen:
        upstream = [futures[n] for n in stages[name].needs if n in futures]
        futures[name] = run_stage.submit(
            one=stages[name], root=root, env=env, compute=compute, wait_for=upstream, return_state=False
        )
    return futures


def _await(futures: Mapping[str, PrefectFuture[stage.StageResult]]) -> None:
    progress = create_progress_artifact(0.0, key="progress", description="stages done")
    for done, future in enumerate(as_completed(list(futures.values())), start=1):
        future.wait()  # takes over its result, which the server does not keep
        update_progress_artifact(progress, round(100 * done / len(futures), 1))  # type: ignore[arg-type]


def _collect(
    futures: Mapping[str, PrefectFuture[stage.StageResult]], place: workspace.Workspace
) -> list[stage.StageResult]:
    """Return all results, or raise one error that names every failed stage and what could not run."""
    results, failed, not_run = [], {}, []
    for name, future in futures.items():
        if future.state.is_completed():
            results.append(future.result())
        elif future.state.is_pending():  # something upstream of it failed
            not_run.append(name)
        else:
            failed[name] = future.state.result(raise_on_failure=False)
    if not failed and not not_run:
        return results
    lines = [str(e) if isinstance(e, UserError) else f"{name}: {e!r}" for name, e in failed.items()]
    if not_run:
        lines.append(f"not run because of that: {', '.join(not_run)}")
    lines.append(
        f"failed: {', '.join(failed)}. The workspace is kept in {place.folder}. Run the same command again: "
        "finished stages are restored, not computed, and an interrupted one continues from its checkpoint."
    )
    raise UserError("\n".join(lines))


def _compared(stages: graph.Graph, results: Sequence[stage.StageResult]) -> bool:
    """Return whether this run made the comparison; otherwise the files are from an earlier run."""
    made = [out for result in results for out in stages[result.stage].outs]
    return any(graph.within(str(summary.DATA), out) for out in made)


def _publish(results: Sequence[stage.StageResult], rows: Sequence[PolicyRow]) -> None:
    """Show both tables on the page of the run."""
    table = [{"stage": r.stage, "how": r.how, "seconds": r.seconds, **r.metrics} for r in results]
    create_table_artifact(table, key="stages", description="How each stage ended")
    if rows:
        create_table_artifact([scalars(r) for r in rows], key="comparison", description="Policies compared")


def _deliver(
    place: workspace.Workspace,
    results: Sequence[stage.StageResult],
    left_out: Sequence[str],
    reports: Sequence[str],
    rows: Sequence[PolicyRow],
) -> FlowResult:
    said = summary.verdict(place.path) if rows else []
    experiment = None
    if workspace.changed(place):
        workspace.save(place, [r.target for r in results])
        experiment = place.name
    brought = workspace.bring_back(place)
    if experiment and not brought:
        get_run_logger().info("your files are unchanged; to use the result: alignflow apply %s", experiment)
    return FlowResult(experiment, brought, tuple(results), tuple(left_out), tuple(reports), tuple(rows), tuple(said))
