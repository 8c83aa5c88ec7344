"""What the stage ``prepare`` writes: the rows of each side, and the report on all rows."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from alignflow.data import preparation
from alignflow.data.formats import mix
from alignflow.data.rows import DataError
from alignflow.data.split import Side
from tasks.data import page
from tasks.data.limits import check
from tasks.data.report import cut_answers, empty_sides
from tasks.data.settings import (
    counted,
    digests,
    in_words,
    layouts_of,
    licence_of,
    limits_of,
    plan_of,
    ruler_of,
    sources_of,
)
from tasks.params.sections import Data
from tasks.paths import PREPARED, UNPAIRED


def write(data: Data, tokenizer: Any, say: Callable[[str], None], *, limit: int) -> dict[str, Any]:
    """Write ``data/prepared`` anew and return the report; data that is refused leaves the folder as it was.

    Args:
        data: settings.
        tokenizer: of the base model.
        say: prints a line of progress.
        limit: greatest length of an answer in evaluation, tokens.

    Raises:
        DataError: the data cannot be read, too many rows are dropped, no prompt is left on a side, or a response is
            longer than the limit.
    """
    sources, limits = sources_of(data), limits_of(data)
    layouts = layouts_of(data, sources)
    if licence := licence_of(data):
        say(f"licence of {licence}")
    for path, layout in layouts.items():
        say(f"{path}: read as {in_words(layout)}")
        for line in layout.lines() if layout else ():
            say(f"{path}: {line}")
    PREPARED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=PREPARED.parent) as folder:
        rows = counted(mix(sources, seed=data.seed, form=data.format, pairs=data.pairs), say)
        ruler = ruler_of(data, tokenizer)
        found = preparation.prepare(rows, ruler, plan_of(data), Path(folder), workers=data.workers)
        check(data.path, found.total, found.findings(), limits)
        report = {
            "data": list(digests(sources)),
            "forms": [
                {"name": path, "form": in_words(layout), "columns": [*layout.lines()] if layout else []}
                for path, layout in layouts.items()
            ],
            "licence": licence,
            **preparation.report(found),
            "limits": {"max_dropped_fraction": limits.overall, "max_fraction": dict(limits.by_reason)},
        }
        if wrong := [*empty_sides(report, data), *cut_answers(report, limit)]:
            raise DataError(f"{data.path}: {'; '.join(wrong)}")
        shutil.rmtree(PREPARED, ignore_errors=True)
        for side in Side:
            _write(PREPARED / f"{side.name.lower()}.jsonl", found.lines(side))
        _write(UNPAIRED, found.unpaired_lines())
    (PREPARED / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    (PREPARED / "report.html").write_text(page.render(report))
    return report


def _write(path: Path, lines: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(lines)
