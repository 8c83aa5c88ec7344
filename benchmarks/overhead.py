"""Measures the overhead of the pipeline: `python -m benchmarks.overhead FOLDER`, a clone in which `make demo` has run.

Reads the tracking database for the finished flow with the most stages. Time during which no stage ran is overhead
(Prefect, DVC, start of Python and imports of every stage). Then measures an unchanged stage, and the imports.
"""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.frame import ROOT, Result, save, spread
from benchmarks.setting import Setting

IMPORTS = {
    "python": "pass",
    "command": "import flows.cli",
    "training stage": "import tasks.training.models, alignflow.loops.offline, transformers, peft, bitsandbytes",
    "mlflow": "import mlflow",
}
REPEATS = 3


class NoFlow(ValueError):
    """The folder has no finished flow run."""


def overhead(folder: Path) -> Result:
    """Return the overhead per stage, and its share of the flow's time."""
    database = folder / ".alignflow/mlflow.db"
    if not database.exists():
        raise NoFlow(f"{database} is missing; run `make demo` in {folder} first")
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        flow = connection.execute(
            "SELECT run_uuid, start_time, end_time FROM runs WHERE status = 'FINISHED' AND run_uuid IN "
            "(SELECT value FROM tags WHERE key = 'mlflow.parentRunId') ORDER BY (SELECT count(*) FROM tags "
            "WHERE key = 'mlflow.parentRunId' AND value = runs.run_uuid) DESC, start_time DESC"
        ).fetchone()
        if flow is None:
            raise NoFlow(f"{database} has no finished flow; run `make demo` in {folder} first")
        stages = connection.execute(
            "SELECT name, start_time, end_time FROM runs JOIN tags USING (run_uuid) WHERE key = 'mlflow.parentRunId' "
            "AND value = ? AND end_time > start_time ORDER BY start_time",
            (flow[0],),
        ).fetchall()
    total = (flow[2] - flow[1]) / 1000
    busy = covered([(begin, end) for _, begin, end in stages]) / 1000
    return {
        "flow_seconds": total,
        "stages": {name: (end - begin) / 1000 for name, begin, end in stages},
        "own_seconds": total - busy,
        "own_seconds_per_stage": (total - busy) / len(stages),
        "own_share": (total - busy) / total,
        "unchanged_stage_seconds": _timed(["-m", "flows.cli", "stage", "sft"], folder),
        "import_seconds": {name: _timed(["-c", code], ROOT) for name, code in IMPORTS.items()},
    }


def covered(intervals: Sequence[tuple[int, int]]) -> int:
    """Return the length of the union of intervals, which may overlap."""
    length, reached = 0, 0
    for begin, end in sorted(intervals):
        length += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return length


def _timed(arguments: Sequence[str], folder: Path) -> Result:
    times = []
    for _ in range(REPEATS):
        began = time.monotonic()
        subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, check=True)
        times.append(time.monotonic() - began)
    return spread(times)


if __name__ == "__main__":
    save("overhead", Setting(), overhead(Path(sys.argv[1])))
