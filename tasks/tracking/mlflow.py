"""Tracking in MLflow: an idempotent replay of the records that stages leave on disk.

The only module that uses MLflow. ``python -m tasks.tracking.mlflow follow FOLDER`` delivers one record while its
stage runs; ``deliver`` sends what is left. Both may be stopped at any point and repeated: a run is found by its
record's id and an adapter by its hash, a metric point keeps its time and value, a file replaces itself.
"""

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.tracking import delivery
from tasks.tracking.outbox import (
    Delivered,
    Entry,
    delivered,
    exclusive,
    flatten,
    has_ended,
    history,
    history_end,
    in_batches,
    journal,
    last_start,
    last_values,
    latest,
    pending,
    undelivered,
    uri_of,
    without_secrets,
)
from tasks.tracking.recorder import Recorder, link_ran, link_reused, start, start_pipeline

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Recorder", "deliver", "link_ran", "link_reused", "pending", "start", "start_pipeline", "unreachable"]

RECORD_TAG = "alignflow.record"  # finds a run again when the note of its id was lost
DIGEST_TAG = "alignflow.adapter"  # finds a logged model again


def deliver(outbox: Path) -> list[str]:
    """Deliver every record that is pending; return a line with the reason for each that failed."""
    return delivery.deliver_all(outbox, _deliver, _reach)


def unreachable(uri: str) -> str:
    """Return why a tracking server cannot be used, after asking it; empty if it can."""
    return delivery.unreachable(uri, _reach)


def _deliver(folder: Path) -> None:
    client = _client(uri_of(folder))
    entries = journal(folder)  # read before the history, so that metrics written before an end are sent before it
    state = _open_run(client, folder)
    state = _send_history(client, folder, state)
    refused: list[str] = []
    for index, entry in enumerate(entries):
        if index in state.entries:
            continue
        try:
            state = _send(client, folder, state, entry)
        except Exception as error:
            if not delivery.is_refused(error):
                raise
            refused.append(f"{entry['kind']} refused: {delivery.reason_of(error)}")
            continue
        state = replace(state, entries=(*state.entries, index)).save(folder)
    if refused:
        raise ValueError("; ".join(refused))
    if has_ended(folder) and not undelivered(folder):
        shutil.rmtree(folder / "payload", ignore_errors=True)


def _open_run(client: "MlflowClient", folder: Path) -> Delivered:
    """Find the run of a record or create it, its parent's before it; return the state with its id."""
    uri, state, entries = uri_of(folder), delivered(folder), journal(folder)
    if state.run_id and state.uri == without_secrets(uri):
        return state
    first, newest = entries[0], last_start(entries)
    experiment = _experiment(client, uri, newest["experiment"], folder)
    found = client.search_runs([experiment], f"tags.`{RECORD_TAG}` = '{first['record']}'", max_results=1)
    if found:
        run_id = found[0].info.run_id
    else:
        tags = {RECORD_TAG: first["record"], "mlflow.user": first["user"], **_parent_tag(client, newest)}
        run = client.create_run(experiment, start_time=first["time"], tags=tags, run_name=newest["name"])
        run_id = run.info.run_id
    return Delivered(uri=without_secrets(uri), run_id=run_id).save(folder)


def _parent_tag(client: "MlflowClient", entry: Entry) -> dict[str, str]:
    parent = Path(entry["parent"])
    if not entry["parent"] or not journal(parent):
        return {}
    with exclusive(parent, delivery.LOCK_SECONDS):  # always child before parent, so this cannot deadlock
        return {"mlflow.parentRunId": _open_run(client, parent).run_id}


def _experiment(client: "MlflowClient", uri: str, name: str, folder: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # a database has no artifact store of its own, and MLflow's default is the working folder
        is_database = uri.startswith(("sqlite", "postgresql", "mysql", "mssql"))
        store = (folder.parents[1] / "mlartifacts").as_uri() if is_database else None
        try:
            return str(client.create_experiment(name, artifact_location=store))
        except MlflowException:  # another process was faster, or it is a real error
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _send_history(client: "MlflowClient", folder: Path, state: Delivered) -> Delivered:
    from mlflow.entities import Metric
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH

    end = history_end(folder, state.history)
    lines = history(folder, state.history, end)
    if not lines:
        return state
    points = latest(lines)
    if min(line["step"] for line in lines) <= state.last_step:  # a resumed stage repeats steps
        before = latest(history(folder, 0, state.history))
        points = {at: point for at, point in points.items() if at not in before or before[at][1] != point[1]}
    metrics = [Metric(_key(key), value, time, step) for (key, step), (time, value) in points.items()]
    for some in in_batches(metrics, MAX_METRICS_PER_BATCH):
        client.log_batch(state.run_id, metrics=some)
    last = max(state.last_step, *(line["step"] for line in lines))
    return replace(state, history=end, last_step=last).save(folder)


def _send(client: "MlflowClient", folder: Path, state: Delivered, entry: Entry) -> Delivered:
    """Deliver one journal entry; sending it again changes nothing."""
    run_id = state.run_id
    match entry["kind"]:
        case "start":
            _describe(client, run_id, entry)
        case "tags":
            _tag(client, run_id, entry["tags"])
        case "source":
            _tag(client, run_id, _source(client, run_id, entry["tags"]))
        case "table":
            _table(client, run_id, folder / entry["path"])
        case "artifact":
            _artifact(client, run_id, folder / entry["path"])
        case "adapter":
            models = _adapter(client, run_id, folder / entry["path"], entry)
            return replace(state, models=tuple(dict.fromkeys([*state.models, *models])))
        case "end":
            _link_metrics(client, folder, state)
            client.set_terminated(run_id, entry["status"], end_time=entry["time"])
    return state


def _describe(client: "MlflowClient", run_id: str, entry: Entry) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param
    from mlflow.utils import validation as limits

    _tag(client, run_id, entry["tags"])
    run = client.get_run(run_id)
    if run.info.status != "RUNNING":
        client.update_run(run_id, "RUNNING")
    given = {_key(key): value[: limits.MAX_PARAM_VAL_LENGTH] for key, value in flatten(entry["params"]).items()}
    params = [Param(key, value) for key, value in given.items() if key not in run.data.params]
    for some in in_batches(params, limits.MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, params=some)
    inputs = [
        DatasetInput(
            Dataset(
                name=item["name"],
                digest=item["digest"][: limits.MAX_DATASET_DIGEST_SIZE],
                source_type="local",
                source=json.dumps({"uri": item["source"]}),
            ),
            tags=[InputTag("mlflow.data.context", item.get("context", "training"))],
        )
        for item in entry["datasets"]
    ]
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _tag(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag
    from mlflow.utils.validation import MAX_PARAMS_TAGS_PER_BATCH, MAX_TAG_VAL_LENGTH

    made = [RunTag(_key(key), value[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items()]
    for some in in_batches(made, MAX_PARAMS_TAGS_PER_BATCH):
        client.log_batch(run_id, tags=some)


def _source(client: "MlflowClient", run_id: str, out_tags: Mapping[str, str]) -> dict[str, str]:
    """Find the run that really made these outputs; none if that run is not on this server."""
    if not out_tags:
        return {}
    experiment = client.get_run(run_id).info.experiment_id
    made = " and ".join(f"tags.`{_key(key)}` = '{value}'" for key, value in out_tags.items())
    runs = client.search_runs([experiment], made, order_by=["attributes.start_time DESC"])
    originals = [run for run in runs if "reused" not in run.data.tags]
    return {"source_run": originals[0].info.run_id} if originals else {}


def _table(client: "MlflowClient", run_id: str, file: Path) -> None:
    """Send a table in the form of ``mlflow.log_table``, which would append to an existing table."""
    if not file.exists():
        return
    client.log_artifact(run_id, str(file))
    listed = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
    item = {"path": file.name, "type": "table"}
    if item not in listed:
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*listed, item]))


def _artifact(client: "MlflowClient", run_id: str, path: Path) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), artifact_path=path.name)
    elif path.exists():
        client.log_artifact(run_id, str(path))


def _adapter(client: "MlflowClient", run_id: str, path: Path, entry: Entry) -> tuple[str, ...]:
    """Log an adapter folder as a ready LoggedModel and register it; return the model's id.

    Not by ``mlflow.transformers``: a PEFT model logged with it reloads with wrong weights.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    experiment, name = run.info.experiment_id, re.sub(r"[^\w-]", "-", entry["name"])
    same = f"tags.`{DIGEST_TAG}` = '{entry['digest']}' AND source_run_id = '{run_id}'"
    models = client.search_logged_models([experiment], filter_string=same, max_results=1)
    if not models:
        if not path.exists():  # delivered to another server before, then deleted here
            return ()
        tags = {DIGEST_TAG: entry["digest"], "mlflow.user": run.data.tags.get("mlflow.user", "")}
        models = [client.create_logged_model(experiment, name=name, source_run_id=run_id, tags=tags)]
    (model,) = models
    if model.status != LoggedModelStatus.READY:
        client.log_model_artifacts(model.model_id, str(path))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    _register(client, run_id, model.model_id, name)
    return (str(model.model_id),)


def _register(client: "MlflowClient", run_id: str, model_id: str, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    made = [item for item in client.search_model_versions(f"name = '{name}'") if item.source == source]
    version = (
        made[0]
        if made
        else client.create_model_version(name, source, run_id=run_id, model_id=model_id, await_creation_for=0)
    )
    shown = [{"name": name, "version": version.version}]  # the model's page lists its versions from this tag
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": json.dumps(shown)})


def _link_metrics(client: "MlflowClient", folder: Path, state: Delivered) -> None:
    """Link the run's last metrics to its models, as the same points that the run has."""
    from mlflow.entities import Metric
    from mlflow.utils.validation import MAX_METRICS_PER_BATCH

    last = last_values(history(folder, 0, state.history))
    for model in state.models:
        points = [
            Metric(_key(key), value, time, step, model_id=model)
            for key, (step, time, value) in last.items()
            if value - value == 0  # a model's metrics cannot be NaN or infinite
        ]
        for some in in_batches(points, MAX_METRICS_PER_BATCH):
            client.log_batch(state.run_id, metrics=some)


def _key(key: str) -> str:
    return re.sub(r"[^\w./ :-]", "_", key)  # what MLflow accepts in a name


def _client(uri: str) -> "MlflowClient":
    import mlflow

    mlflow.set_tracking_uri(uri)  # "models:/" sources are looked up there, whichever client is used
    return mlflow.MlflowClient(tracking_uri=uri)


def _reach(uri: str) -> None:
    """Send one small request; raise MLflow's error if the server does not answer."""
    _client(uri).search_experiments(max_results=1)


def main(arguments: Sequence[str]) -> int:
    """Run ``follow FOLDER``."""
    match arguments:
        case ["follow", folder]:
            delivery.follow(Path(folder), _deliver)
            return 0
    print("usage: python -m tasks.tracking.mlflow follow FOLDER", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
