"""Stage ``compare``: every policy against the reference, as tables, as a page and as metrics.

Reads ``evaluations/``, ``metrics/`` and ``plots/`` of the stages before it; trains and samples nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from alignflow.evaluation.win_rates import Resampling
from tasks.comparison import export, page
from tasks.comparison.compute import compare
from tasks.comparison.results import Comparison, Method
from tasks.comparison.verdict import Verdict, verdict
from tasks.comparison.wording import between, duration, number, percent, signed
from tasks.judges import PROXY
from tasks.params.read import load
from tasks.policies import chosen
from tasks.running.stage import Stage
from tasks.tracking import recorder


def write_reports(root: Path) -> tuple[Comparison, Verdict]:
    """Compare the policies under ``root``, write the reports there and return what they are made of.

    Raises:
        ParamsError: ``params.yaml`` is missing or wrong.
        InputError: A file of an earlier stage is missing, broken or does not fit the others.
    """
    settings = load(root / "params.yaml")
    section = settings.compare
    method = Method(
        resampling=Resampling(samples=section.bootstrap_samples, confidence=section.confidence, seed=section.seed),
        length_ridge=section.length_ridge,
        kl_levels=section.kl_levels,
    )
    comparison = compare(root, chosen(settings.policies), tuple(settings.iterative_dpo.rounds), method)
    said = verdict(comparison)
    _write(root / "reports" / "comparison.json", _json(rows(comparison, said)))
    _write(root / "reports" / "verdict.json", _json(export.summary(comparison, said)))
    _write(root / "reports" / "comparison.html", page.render(comparison, said))
    return comparison, said


def rows(comparison: Comparison, said: Verdict) -> list[dict[str, object]]:
    """Return the entries of ``reports/comparison.json``."""
    verdicts = {one.result.policy: one for one in said.policies}
    return [export.row(result, comparison, verdicts.get(result.policy)) for result in comparison.compared]


def table(comparison: Comparison) -> str:
    """Return the comparison as plain text of fixed width, for a terminal or a log."""
    judges = [judge for judge in comparison.judges if judge != PROXY]
    head = ("policy", "wins", "interval", *judges, "equal length", "score", "KL", "tokens", "cut off", "time", "GiB")
    lines = [head]
    for result in comparison.compared:
        assert result.cost is not None, result.policy
        lines.append(
            (
                result.title,
                percent(result.score.rate),
                between(result.score.interval),
                *(percent(result.rates[judge].rate) for judge in judges),
                percent(result.equal_length[PROXY].value),
                signed(result.means[PROXY].value),
                number(result.traits["kl"].value),
                f"{result.traits['response_length'].value:.0f}",
                percent(result.traits["truncated"].value),
                duration(result.cost.train_seconds),
                number(result.cost.peak_memory_gib),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def work(stage: Stage) -> Mapping[str, float]:
    """Compare in the current folder, print table and verdict, track the page, the tables and a run a policy."""
    comparison, said = write_reports(Path())
    print("\n".join([table(comparison), "", *said.lines]), flush=True)
    stage.record.artifact(Path("reports"))
    stage.record.table("comparison", [export.scalars(row) for row in rows(comparison, said)])
    stage.record.table("round_robin", export.round_robin(comparison))
    for result in comparison.results.values():
        # the same keys in every run, so that MLflow's compare view puts the policies beside each other
        recorder.nested(stage.record, f"compare/{result.policy}", export.of_policy(result))
    return export.metrics(comparison)


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
