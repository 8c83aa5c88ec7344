"""Measures speed and memory of ``prepare``: `python benchmarks/prepare.py ROWS [WORKERS]`.

Writes ROWS rows (short questions with two answers, some repeated, contradictory or broken), prepares them with the
default base model's tokenizer and prints rows per second and peak resident memory.
"""

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it can be run by its path

from alignflow.data.formats import read_rows
from alignflow.data.preparation import Plan, prepare, report
from alignflow.data.sources import Source
from alignflow.data.split import Side
from alignflow.data.survey import Ruler
from alignflow.models.base import identify
from alignflow.models.load import load_tokenizer
from benchmarks.setting import Setting
from tasks.paths import CONVERTED

ROOT = Path(__file__).resolve().parents[1]


def write(path: Path, rows: int) -> None:
    draw = random.Random(1)
    vocabulary = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]

    def text(words: int) -> str:
        return " ".join(draw.choices(vocabulary, k=words))

    with path.open("w") as file:
        last = {"prompt": text(12), "chosen": text(20), "rejected": text(30)}
        for _ in range(rows):
            kind = draw.random()
            if kind < 0.005:
                file.write("{broken\n")
                continue
            if kind < 0.98:
                last = {"prompt": text(draw.randint(6, 20)), "chosen": text(20), "rejected": text(30)}
            elif kind < 0.99:
                last = {**last, "chosen": last["rejected"], "rejected": last["chosen"]}
            file.write(json.dumps(last) + "\n")


def memory() -> float:
    """Peak memory of this process, in GiB; that of a worker is printed separately."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(setting: Setting) -> dict[str, Any]:
    return main(setting.number, 1, setting.model)


def main(rows: int, workers: int, model: str = Setting.model) -> dict[str, Any]:
    tokenizer = load_tokenizer(identify(model, None, converted=ROOT / CONVERTED))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "preferences.jsonl")
        write(path, rows)
        print(f"{rows} rows, {path.stat().st_size / 2**20:.0f} MiB; before: {memory():.2f} GiB", flush=True)
        began = time.monotonic()
        ruler = Ruler(tokenizer, 512, 512, seed=1)
        found = prepare(read_rows(Source(str(path))), ruler, Plan(0.2, 0.25, 0.0, 0.8), Path(folder), workers=workers)
        measured = time.monotonic()
        for side in Side:
            with Path(folder, f"{side.name}.jsonl").open("wb") as file:
                file.writelines(found.lines(side))
        said = report(found)
        seconds = time.monotonic() - began
        print(json.dumps({key: said[key] for key in ("rows", "used", "dropped", "unpaired")}))
        print("\n".join(finding.line for finding in found.findings()))
        worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(
            f"{rows / seconds:.0f} rows per second ({measured - began:.1f} s to read and check, "
            f"{seconds - (measured - began):.1f} s to write and describe), peak {memory():.2f} GiB"
            + (f", {worker:.2f} GiB the largest worker" if workers > 1 else "")
        )
    return {"seconds": seconds, "rows_per_second": rows / seconds, "used": said["used"]}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
