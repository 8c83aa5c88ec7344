"""Tracking in a stage: it writes a record to disk, and a separate process delivers the record.

So a slow, hung or dead tracking server can never slow, stop or fail a stage, and the stage
needs no memory or imports for MLflow.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

from tasks.paths import home, make_home
from tasks.tracking.outbox import (
    append,
    children,
    destination,
    file_name,
    history,
    journal,
    last_start,
    mend,
    private,
    problem,
    undelivered_tree,
    without_secrets,
)

FINISH_SECONDS = 10.0  # how long a stage that has ended waits for the delivery of its record


@dataclass(frozen=True)
class Recorder:
    """Writes one record; every method is quick and local, whatever state the tracking server is in."""

    folder: Path
    delivery: "subprocess.Popen[bytes] | None" = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of a step; the time is taken here, so that a replay repeats it exactly."""
        values = {key: float(value) for key, value in metrics.items()}
        append(self.folder / "history.jsonl", {"time": _now(), "step": int(step), "metrics": values})

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Record a table, such as sample completions; a later table of the same name replaces it."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        data = [[_cell(row.get(column)) for column in columns] for row in rows]
        file = self._payload() / f"{file_name(name)}.json"
        file.write_text(json.dumps({"columns": columns, "data": data}, ensure_ascii=False, default=str))
        self._note("table", path=str(file.relative_to(self.folder)), name=name)

    def artifact(self, path: Path) -> None:
        """Record a copy of a file or folder as it is now."""
        self._note("artifact", path=str(self._copy(path).relative_to(self.folder)), name=path.name)

    def adapter(self, path: Path, *, name: str) -> None:
        """Record a copy of an adapter folder, to become the next version of the registered model ``name``."""
        copy = self._copy(path)
        digest = hashlib.sha256()
        for file in sorted(item for item in copy.rglob("*") if item.is_file()):
            digest.update(f"{file.relative_to(copy)}\n{file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
        self._note("adapter", path=str(copy.relative_to(self.folder)), name=name, digest=digest.hexdigest())

    def tag(self, tags: Mapping[str, str]) -> None:
        """Record tags of the run; a later value of the same tag replaces it."""
        self._note("tags", tags={key: str(value) for key, value in tags.items()})

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Record the end (FINISHED, FAILED or KILLED), wait a bounded time for delivery, say what is left."""
        if metrics:
            self.log(max((line["step"] for line in history(self.folder)), default=0), metrics)
        self._note("end", status=status)
        late = self._wait()
        left = undelivered_tree(self.folder)
        if left:
            start = last_start(journal(self.folder))
            reason = problem(self.folder) or late
            print(
                f"[{start['tags'].get('stage', start['name'])}] not delivered to MLflow at "
                f"{start['uri']}: {left} ({reason}). "
                "It is kept on disk; `alignflow deliver` sends it.",
                flush=True,
            )

    def _wait(self) -> str:
        if self.delivery is None:
            return "no delivery process"
        if self.delivery.stdin and not self.delivery.stdin.closed:
            self.delivery.stdin.close()
        deadline = time.monotonic() + FINISH_SECONDS
        while time.monotonic() < deadline and undelivered_tree(self.folder):
            try:
                self.delivery.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            return f"the delivery process has stopped, see {self.folder / 'delivery.log'}"
        return f"no answer within {FINISH_SECONDS:.0f} s"

    def _note(self, kind: str, **fields: object) -> None:
        append(self.folder / "journal.jsonl", {"kind": kind, "time": _now(), **fields})

    def _payload(self) -> Path:
        folder = self.folder / "payload" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def _copy(self, path: Path) -> Path:
        target = self._payload() / path.name
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copy2(path, target)
        return target


class Silent:
    """Has the methods of a ``Recorder`` and records nothing: for all processes of a stage except the first."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Do nothing."""

    def artifact(self, path: Path) -> None:
        """Do nothing."""

    def adapter(self, path: Path, *, name: str) -> None:
        """Do nothing."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Do nothing."""


def start(
    key: str,
    *,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    datasets: Sequence[Mapping[str, str]] = (),
    parent: Path | None = None,
) -> Recorder:
    """Open the record ``key`` and the process that delivers it; an existing key continues the same run.

    A dataset is ``{"name", "digest", "source"}`` and optionally ``"context"``; ``parent`` is the record
    folder of the pipeline that this stage belongs to.
    """
    recorder = _open(key, name=name, params=params, tags=tags, datasets=datasets, parent=parent)
    return Recorder(recorder.folder, _spawn_delivery(recorder.folder))


def start_pipeline(
    key: str, *, name: str, params: Mapping[str, object], tags: Mapping[str, str], parent: Path | None = None
) -> Recorder:
    """Open the record of a pipeline run; its delivery process also delivers what its ended stages could not."""
    return start(key, name=name, params=params, tags=tags, parent=parent)


def link_ran(parent: Path, stage: str, outs: Mapping[str, str]) -> None:
    """Tag the run of a stage of this pipeline with the hashes of its outputs, so that a reuse finds it."""
    for child in children(parent, stage):
        Recorder(child).tag(_out_tags(outs))


def link_reused(parent: Path, stage: str, metrics: Mapping[str, float], outs: Mapping[str, str]) -> None:
    """Record a stage that was restored, not run: a child "STAGE (reused)" that names its source run."""
    if children(parent, stage):
        return
    recorder = _open(
        f"{parent.name}.{stage}",
        name=f"{stage} (reused)",
        params={},
        tags={"stage": stage, "reused": "true", **_out_tags(outs)},
        parent=parent,
    )
    if metrics:
        recorder.log(0, metrics)
    recorder._note("source", tags=_out_tags(outs))
    recorder._note("end", status="FINISHED")


def nested(parent: Recorder | Silent, name: str, metrics: Mapping[str, float]) -> None:
    """Record metrics of one part of a stage as a finished run below the stage's run, which delivers it."""
    if isinstance(parent, Silent):
        return
    recorder = _open(f"{parent.folder.name}.{name}", name=name, params={}, tags={"stage": name}, parent=parent.folder)
    recorder.log(0, metrics)
    recorder._note("end", status="FINISHED")


def _open(
    key: str,
    *,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    datasets: Sequence[Mapping[str, str]] = (),
    parent: Path | None = None,
) -> Recorder:
    recorder = Recorder(make_home() / "outbox" / file_name(key))
    recorder.folder.mkdir(parents=True, exist_ok=True)
    for file in ("history.jsonl", "journal.jsonl"):
        mend(recorder.folder / file)
    first = next(iter(journal(recorder.folder)), {})
    if parent is not None and (parent / "journal.jsonl").exists():
        mark = parent / "children" / recorder.folder.name
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    recorder._note(
        "start",
        record=first.get("record", uuid.uuid4().hex),  # not the key: other projects may use the same server
        name=name,
        user=_user(),
        params=json.loads(json.dumps(params, default=str)),
        tags={tag: str(value) for tag, value in tags.items()},
        datasets=[dict(dataset) for dataset in datasets],
        parent=str(parent) if parent else "",
        uri=without_secrets(destination()),
        experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or "alignflow",
    )
    return recorder


def _spawn_delivery(folder: Path) -> "subprocess.Popen[bytes] | None":
    """Start the process that delivers the record while the stage runs; it ends soon after its stdin closes.

    It has its own session, so that signals to the stage's group do not stop the last delivery, and runs in the
    record's folder, because a run's checkout may be removed.
    """
    code = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(code), os.environ.get("PYTHONPATH")]))
    try:
        with open(folder / "delivery.log", "ab", opener=private) as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tasks.tracking.mlflow", "follow", str(folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path, "ALIGNFLOW_HOME": str(home())},
                start_new_session=True,
                umask=0o077,  # also for a local database
            )
    except OSError:  # no memory for a process now: the record is there for `alignflow deliver`
        return None


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return str(os.getuid())


def _out_tags(outs: Mapping[str, str]) -> dict[str, str]:
    return {f"dvc.out.{path}": digest for path, digest in outs.items()}


def _cell(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON in browsers has no NaN


def _now() -> int:
    return time.time_ns() // 1_000_000
