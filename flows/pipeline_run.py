"""The parent run of a flow in the tracking service: its settings and its results."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows import stage, summary, workspace
from flows.git import git
from flows.graph import output_hashes
from flows.workspace import Workspace
from tasks.comparison.table import PolicyRow
from tasks.paths import home

if TYPE_CHECKING:
    from tasks.tracking.mlflow import Recorder


@dataclass(frozen=True)
class Parent:
    """The parent run of the stages of a flow."""

    recorder: "Recorder"
    place: Workspace

    @property
    def env(self) -> Mapping[str, str]:
        """Environment variables that link a stage's process to this run."""
        return {"ALIGNFLOW_PARENT": str(self.recorder.folder)}

    def finish(self, results: Sequence[stage.StageResult], rows: Sequence[PolicyRow]) -> None:
        """Add what no stage's process can record: the stages that DVC did not have to run, and the comparison."""
        from tasks.tracking import mlflow

        record, hashes = self.recorder.folder, output_hashes(self.place.path)
        nothing_new = all(result.how == stage.UNCHANGED for result in results)
        for result in () if nothing_new else results:
            made = hashes[result.target]
            if result.how == stage.RAN:
                for name in {result.stage, result.target}:  # a stage's process may use either name
                    mlflow.link_ran(record, name, made)
            else:
                mlflow.link_reused(record, result.stage, result.metrics, made)
        page = self.place.path / summary.PAGE
        if rows and page.exists():
            self.recorder.artifact(page)
        compared = {
            f"{row['policy']}/{key}": float(value)
            for row in rows
            for key, value in row.items()
            if isinstance(value, (int, float))
        }
        self.recorder.finish("FINISHED", compared)


@contextmanager
def pipeline(place: Workspace, run: str, only: Sequence[str]) -> Iterator[Parent]:
    """Open the parent run; it ends as failed or killed when the flow does."""
    from tasks.tracking import mlflow

    recorder = mlflow.start_pipeline(
        f"pipeline-{run}",
        name=place.name,
        params=_params(place),
        tags={
            "prefect.flow_run": run,
            "git.commit": git(place.path, "rev-parse", "HEAD"),
            "dvc.exp": place.name,
            "overrides": " ".join(place.overrides),
            "only": " ".join(only),
        },
        parent=home() / "outbox" / workspace.series_run(place.series) if place.series else None,
    )
    with _ended(recorder):
        yield Parent(recorder, place)


@contextmanager
def series(key: str, name: str, seeds: int) -> Iterator["Recorder"]:
    """Open the parent run of the pipelines of a run over seeds; the same series continues the same run."""
    from tasks.tracking import mlflow

    recorder = mlflow.start_pipeline(
        workspace.series_run(key), name=name, params={"seeds": seeds}, tags={"stage": "seeds"}
    )
    with _ended(recorder):
        yield recorder


@contextmanager
def _ended(recorder: "Recorder") -> Iterator[None]:
    try:
        yield
    except Exception:
        recorder.finish("FAILED", {})
        raise
    except BaseException:  # cancelled
        recorder.finish("KILLED", {})
        raise


def _params(place: Workspace) -> dict[str, object]:
    """Return the run's parameters, nested as in the file; the delivery writes dotted keys."""
    from ruamel.yaml import YAML

    params: dict[str, object] = YAML(typ="safe").load(place.path / "params.yaml")
    return params
