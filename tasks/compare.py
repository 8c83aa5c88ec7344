"""Stage ``compare``: every policy against the reference, as tables, as a page and as metrics.

Reads ``evaluations/``, ``metrics/`` and ``plots/`` of the stages before it; trains and samples nothing.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from alignflow.comparison import Resampling
from tasks import params, report
from tasks.outcomes import Comparison, compare, metrics, row
from tasks.stage import Stage, run
from tasks.verdict import interval, percent, verdict


def write_reports(root: Path) -> Comparison:
    """Compare the policies under ``root``, write the reports there and return what they are made of.

    Raises:
        ParamsError: ``params.yaml`` is missing or wrong.
        InputError: A file of an earlier stage is missing, broken or does not fit the others.
    """
    settings = params.load(root / "params.yaml")
    resampling = Resampling(
        samples=settings.compare.bootstrap_samples,
        confidence=settings.compare.confidence,
        seed=settings.compare.seed,
    )
    comparison = compare(root, tuple(settings.iterative_dpo.rounds), resampling)
    _write(root / "reports" / "comparison.json", _json([row(outcome) for outcome in comparison.compared]))
    _write(root / "reports" / "comparison.html", report.render(comparison))
    return comparison


def table(comparison: Comparison) -> str:
    """Return the comparison as plain text of fixed width, for a terminal or a log."""
    head = ("policy", "win rate", "interval", "judge", "score", "KL", "tokens", "cut off", "time", "GiB")
    lines = [head]
    for outcome in comparison.compared:
        assert outcome.cost is not None, outcome.policy
        lines.append(
            (
                outcome.title,
                percent(outcome.score.rate),
                interval(outcome.score),
                percent(outcome.gold.rate),
                f"{outcome.score_mean:+.2f}",
                f"{outcome.kl_reference:.2f}",
                f"{outcome.response_length_mean:.0f}",
                percent(outcome.truncated_fraction),
                report.duration(outcome.cost.train_seconds),
                f"{outcome.cost.peak_memory_gib:.2f}",
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


def summary(comparison: Comparison) -> str:
    """Return the verdict in words, one line a policy."""
    said = verdict(comparison)
    lines = [f"{finding.outcome.title} {finding.sentence}" for finding in said.findings]
    return "\n".join([f"{said.headline} {said.detail}", *lines])


def work(stage: Stage) -> Mapping[str, float]:
    """Compare in the current folder, print table and verdict, track the page."""
    comparison = write_reports(Path())
    print(f"{table(comparison)}\n\n{summary(comparison)}", flush=True)
    stage.record.artifact(Path("reports"))
    return metrics(comparison)


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run("compare", work, sections=["compare"], inputs=["evaluations"], outs=["reports"])
