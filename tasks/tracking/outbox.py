"""The outbox: tracking records on disk, how far each has been delivered, and who may deliver it now.

A record is a folder of ``history.jsonl`` (metrics), ``journal.jsonl`` (everything else, in order),
``payload/`` (copies of files to send), ``delivered.json`` (how far delivery has come) and ``children/`` (the
names of a pipeline's stages). It is the original; the tracking server holds a copy. Nothing here needs MLflow.
"""

import fcntl
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from tasks.paths import home

Entry = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Delivered:
    """How far a record has been delivered, and to which run of which server."""

    uri: str = ""
    run_id: str = ""
    history: int = 0  # bytes of history.jsonl
    last_step: int = -1  # a later line at or below it repeats a step, which only a resumed stage does
    entries: tuple[int, ...] = ()  # lines of journal.jsonl
    models: tuple[str, ...] = ()  # logged models of this run, to which its metrics are linked

    def save(self, folder: Path) -> "Delivered":
        """Replace the record's state in one step, so that a kill leaves the old one or the new one."""
        draft = folder / "delivered.tmp"
        with open(draft, "w", opener=private) as file:
            file.write(json.dumps(asdict(self)))
        draft.replace(folder / "delivered.json")
        return self


def pending(outbox: Path) -> list[str]:
    """Return one line for each record that awaits delivery, oldest first."""
    return [f"{title(folder)}: {undelivered(folder)}" for folder in pending_records(outbox)]


def pending_records(outbox: Path) -> list[Path]:
    """Return the folders of records that await delivery, oldest first."""
    found = [file.parent for file in outbox.glob("*/journal.jsonl") if undelivered(file.parent)]
    return sorted(found, key=lambda folder: int(journal(folder)[0]["time"]))


def title(folder: Path) -> str:
    """Return a readable name of this record: its run's name and its key."""
    return f"{last_start(journal(folder))['name']} [{folder.name}]"


def undelivered(folder: Path) -> str:
    """Describe what is left to deliver of a record; empty if nothing is."""
    state = delivered(folder)
    lines = len(history(folder, state.history))
    left = [entry["kind"] for index, entry in enumerate(journal(folder)) if index not in state.entries]
    metrics = [f"{lines} line{'s' * (lines > 1)} of metrics"] if lines else []
    return ", ".join(metrics + [f"{count} {kind}" for kind, count in Counter(left).items()])


def undelivered_tree(folder: Path) -> str:
    """Describe what is left to deliver of a record, and how many of its ended stages wait too."""
    waiting = sum(1 for child in children(folder) if has_ended(child) and undelivered(child))
    stages = [f"{waiting} of its stages"] if waiting else []
    return ", ".join(filter(None, [undelivered(folder), *stages]))


def delivered(folder: Path) -> Delivered:
    """Return how far a record has been delivered."""
    file = folder / "delivered.json"
    if not file.exists():
        return Delivered()
    try:
        state = json.loads(file.read_text())
    except ValueError:  # a power cut can leave it empty; delivering again is harmless
        return Delivered()
    return Delivered(**{**state, "entries": tuple(state["entries"]), "models": tuple(state["models"])})


def journal(folder: Path) -> list[Entry]:
    """Return the record's complete journal entries; the first is always a start."""
    return _read(folder / "journal.jsonl")


def history(folder: Path, begin: int = 0, end: int | None = None) -> list[Entry]:
    """Return the complete metric lines between two byte positions."""
    return _read(folder / "history.jsonl", begin, end)


def history_end(folder: Path, begin: int) -> int:
    """Return the byte position after the last complete metric line."""
    file = folder / "history.jsonl"
    if not file.exists():
        return begin
    with file.open("rb") as source:
        source.seek(begin)
        return begin + source.read().rfind(b"\n") + 1


def latest(lines: Sequence[Entry]) -> dict[tuple[str, int], tuple[int, float]]:
    """Return (time, value) by metric and step: where lines repeat a step, the later one wins.

    A repeated value keeps its first time: then it is the same point, however many lines are read at once.
    """
    found: dict[tuple[str, int], tuple[int, float]] = {}
    for line in lines:
        for key, value in line["metrics"].items():
            at = key, line["step"]
            if at not in found or found[at][1] != value:
                found[at] = line["time"], value
    return found


def last_values(lines: Sequence[Entry]) -> dict[str, tuple[int, int, float]]:
    """Return (step, time, value) of each metric's last point."""
    last: dict[str, tuple[int, int, float]] = {}
    for (key, step), (time_, value) in latest(lines).items():
        if key not in last or step >= last[key][0]:
            last[key] = step, time_, value
    return last


def last_start(entries: Sequence[Entry]) -> Entry:
    """Return the newest start entry: a reopened record goes where the newest start said."""
    return next(entry for entry in reversed(entries) if entry["kind"] == "start")


def has_ended(folder: Path) -> bool:
    """Return whether the stage that writes this record has ended (and has not been started again)."""
    kinds = [entry["kind"] for entry in journal(folder) if entry["kind"] in ("start", "end")]
    return kinds[-1:] == ["end"]


def children(parent: Path, stage: str | None = None) -> list[Path]:
    """Return the records of a pipeline's stages, or those of one stage."""
    found = [parent.parent / mark.name for mark in sorted(parent.glob("children/*"))]
    entries = {folder: journal(folder) for folder in found}
    return [
        folder for folder, lines in entries.items() if lines and stage in (None, last_start(lines)["tags"].get("stage"))
    ]


def problem(folder: Path) -> str:
    """Return why the last attempt to deliver failed; empty when it did not."""
    file = folder / "problem.txt"
    return file.read_text() if file.exists() else ""


@contextmanager
def exclusive(folder: Path, seconds: float) -> Iterator[None]:
    """Hold the record's delivery lock, which ends with its process; BlockingIOError if another process keeps it."""
    with open(folder / "lock", "w", opener=private) as file:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BlockingIOError("another process is delivering it") from None
                time.sleep(0.05)
        yield


def destination() -> str:
    """Return the tracking URI: the user's, or a local database that is the same from every checkout."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if not given:
        return f"sqlite:///{home() / 'mlflow.db'}"
    dialect, _, path = given.partition(":///")
    if dialect == "sqlite" and not path.startswith("/"):  # not relative to a run's worktree, which is temporary
        return f"sqlite:///{(home().parent / path).resolve()}"
    return given


def uri_of(folder: Path) -> str:
    """Return the tracking URI of a record: the one that the user sets now, or the one at its start without secrets."""
    return destination() if os.environ.get("MLFLOW_TRACKING_URI") else str(last_start(journal(folder))["uri"])


def without_secrets(uri: str) -> str:
    """Return the URI without user name, password and query, which may hold a password too."""
    scheme, separator, rest = uri.partition("://")
    if not separator or rest.startswith("/"):  # a file
        return uri.partition("?")[0]
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"


def masked(text: str) -> str:
    """Return the text with its URLs' user names and passwords left out."""
    return re.sub(r"://[^/\s@'\"]*@", "://", text)


def private(path: str, flags: int) -> int:
    """Open a file that only this user can read; for ``open(..., opener=private)``."""
    return os.open(path, flags, 0o600)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn nested settings into dotted keys; lists stay readable as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list) else str(value)
    return flat


def file_name(text: str) -> str:
    """Return the text as a name that is valid in every file system and in MLflow's paths."""
    return re.sub(r"[^\w.@=-]", "-", text)


def in_batches(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Split a list into parts that fit in one request."""
    for begin in range(0, len(items), size):
        yield list(items[begin : begin + size])


def append(file: Path, line: Entry) -> None:
    """Append one complete line; readers wait for its newline."""
    with open(file, "ab", opener=private) as out:
        out.write(json.dumps(line).encode() + b"\n")


def mend(file: Path) -> None:
    """Drop the half-written last line that a kill can leave, so that the next line stands alone."""
    if file.exists():
        text = file.read_bytes()
        if not text.endswith(b"\n"):
            os.truncate(file, text.rfind(b"\n") + 1)


def _read(file: Path, begin: int = 0, end: int | None = None) -> list[Entry]:
    if not file.exists():
        return []
    with file.open("rb") as source:
        source.seek(begin)
        text = source.read(-1 if end is None else end - begin)
    return [json.loads(line) for line in text.split(b"\n")[:-1]]
