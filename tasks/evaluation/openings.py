"""Openings of the test side: each is recorded before its first row is read, in a file that git keeps."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.params.sections import Params
from tasks.paths import FINAL, LOCK, TEST
from tasks.running.provenance import commit, sha256

OPENINGS = FINAL / "openings.jsonl"
OPENED = FINAL / "reports" / "opening.json"
"""The opening that the reports beside it belong to; written after them."""


class Opening(BaseModel):
    """One opening of the test side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str
    commit: str
    """Empty outside git."""
    uncommitted: bool
    """Code or settings differed from the commit."""
    settings: str
    """Hash of all values in params.yaml."""
    results: str
    """Hash of dvc.lock: of code, settings, data and outputs of every stage."""
    rows: str
    """Hash of the test side."""
    policies: tuple[str, ...]


class BrokenRecord(ValueError):
    """The record of openings holds a line that is none."""


class NoTestSide(ValueError):
    """There is nothing to open."""


def check(root: Path, params: Params) -> None:
    """Make sure that there is a test side; looks at no row.

    Raises:
        NoTestSide: there is none; the message says which setting makes one.
    """
    if not params.data.test_fraction:
        raise NoTestSide(
            "data.test_fraction is 0, so there is no test side; `alignflow set data.test_fraction=0.2` makes one"
        )
    path = root / TEST
    if path.exists() and not path.stat().st_size:
        raise NoTestSide(f"{TEST} holds no prompt; use more data or a larger data.test_fraction")


def opening(params: Params, policies: Sequence[str]) -> Opening:
    """Return what an opening now would be."""
    settings = json.dumps(params.model_dump(mode="json"), sort_keys=True)
    return Opening(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit().get("git.commit", ""),
        uncommitted=_uncommitted(),
        settings=hashlib.sha256(settings.encode()).hexdigest(),
        results=sha256(LOCK),
        rows=sha256(TEST),
        policies=tuple(policies),
    )


def record(one: Opening) -> None:
    """Append an opening: one write of one line, on disk when this returns."""
    OPENINGS.parent.mkdir(exist_ok=True)
    file = os.open(OPENINGS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (one.model_dump_json() + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def recorded(root: Path) -> tuple[Opening, ...]:
    """Return all openings of a checkout, the first one first.

    Raises:
        BrokenRecord: a line is none; names it.
    """
    path, found = root / OPENINGS, []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            found.append(Opening.model_validate_json(line))
        except ValidationError:
            raise BrokenRecord(
                f"{path}, line {number}: no record of an opening; `git checkout {OPENINGS}` brings the file back"
            ) from None
    return tuple(found)


def shown(root: Path) -> Opening | None:
    """Return the opening that the results of the test side belong to; None without complete results."""
    path = root / OPENED
    return Opening.model_validate_json(path.read_text()) if path.exists() else None


def is_present(one: Opening, root: Path) -> bool:
    """Return whether an opening saw the results and the test side that the checkout has now."""
    paths = {root / LOCK: one.results, root / TEST: one.rows}
    return all(path.exists() and sha256(path) == seen for path, seen in paths.items())


def sentence(one: Opening, all_: Iterable[Opening]) -> str:
    """Say how often this test side was opened, and how often with something else than now."""
    every = tuple(all_)
    same_rows = [each for each in every if each.rows == one.rows]
    others = [each for each in same_rows if each.settings != one.settings]
    changed = [each for each in same_rows if each.settings == one.settings and each.results != one.results]
    said = f"The test side was opened {_times(len(same_rows))}"
    parts = [
        f"{_times(len(others))} with other settings" if others else "",
        f"{_times(len(changed))} with these settings and other results" if changed else "",
    ]
    if len(same_rows) > 1:
        said += f": {', '.join(filter(None, parts))}" if any(parts) else ", always with these settings and results"
    if others or changed:
        said += "; settings may have been chosen by it"
    if earlier := len(every) - len(same_rows):
        said += f"; a test side of other rows {_times(earlier)}"
    return f"{said}."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _uncommitted() -> bool:
    """Return whether a file differs from the commit, except what DVC and openings write."""
    beside = [f":(exclude){path}" for path in (LOCK, FINAL)]
    command = ["git", "status", "--porcelain", "--", ".", *beside]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.returncode == 0 and bool(found.stdout.strip())
