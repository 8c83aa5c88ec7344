"""Stage ``prepare``: read the preferences, drop what cannot be used and count it, split by prompt, and report."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.paths import IDENTITY, PREPARED, UNPAIRED
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Write ``train.jsonl``, ``judge.jsonl`` and ``eval.jsonl`` with ``report.json`` and ``report.html``."""
    from alignflow.data import preparation, statistics
    from alignflow.data.formats import mix
    from alignflow.data.rows import DataError
    from alignflow.data.split import Side
    from alignflow.models.base import load_identity
    from alignflow.models.load import load_tokenizer
    from tasks.data import page
    from tasks.data.limits import check
    from tasks.data.settings import (
        counted,
        digests,
        empty_sides,
        form_in_words,
        forms_of,
        limits_of,
        plan_of,
        ruler_of,
        sources_of,
        summary,
    )

    data = stage.params.data
    sources = sources_of(data)
    limits = limits_of(data)
    forms = forms_of(data, sources)
    for path, form in forms.items():
        stage.say(f"{path}: read as {form_in_words(form)}")
    ruler = ruler_of(data, load_tokenizer(load_identity(IDENTITY)))
    PREPARED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=PREPARED.parent) as folder:
        rows = counted(mix(sources, seed=data.seed, form=data.format, pairs=data.pairs), stage.say)
        found = preparation.prepare(rows, ruler, plan_of(data), Path(folder), workers=data.workers)
        check(data.path, found.total, found.findings(), limits)
        report = {
            "data": list(digests(sources)),
            "forms": [{"name": path, "form": form_in_words(form)} for path, form in forms.items()],
            **preparation.report(found),
            "limits": {"max_dropped_fraction": limits.overall, "max_fraction": dict(limits.by_reason)},
        }
        if empty := empty_sides(report, data):
            raise DataError(f"{data.path}: {'; '.join(empty)}")
        shutil.rmtree(PREPARED, ignore_errors=True)  # only now: a gate that stops loses nothing
        for side in Side:
            _write(PREPARED / f"{side.name.lower()}.jsonl", found.lines(side))
        if unpaired := list(found.unpaired_lines()):
            _write(UNPAIRED, unpaired)
    (PREPARED / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    (PREPARED / "report.html").write_text(page.render(report))
    _track(stage, report)
    stage.say(summary(report))
    for finding in [*report["findings"], *report["warnings"]]:
        stage.say(f"{finding['rows']:7d}  {finding['text']} (rows {', '.join(finding['examples'])})")
    return {**_counts(report), **statistics.flat(report["statistics"])}


def _write(path: Path, lines: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(lines)


def _track(stage: Stage, report: Mapping[str, Any]) -> None:
    stage.record.artifact(PREPARED / "report.json")
    stage.record.artifact(PREPARED / "report.html")
    stage.record.tag({f"data.{source['name']}": source["digest"] for source in report["data"]})
    found = [*report["findings"], *report["warnings"]]
    if found:
        stage.record.table("data faults", [{**f, "examples": ", ".join(f["examples"])} for f in found])


def _counts(report: Mapping[str, Any]) -> dict[str, float]:
    sides = {
        f"{side}_{what}": float(contents[what])
        for side, contents in report["sides"].items()
        for what in ("rows", "prompts", "pairs", "demonstrations")
    }
    dropped: dict[str, float] = {}
    for finding in report["findings"]:
        key = f"dropped/{finding['reason']}"
        dropped[key] = dropped.get(key, 0.0) + finding["rows"]
    return {
        "rows": float(report["rows"]),
        "dropped": float(report["dropped"]),
        "unused": float(report["unused"]),
        "special_tokens": float(sum(w["rows"] for w in report["warnings"])),
        **dropped,
        **sides,
    }
