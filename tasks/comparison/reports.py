"""Compare and write ``reports/``: the entries of all policies, the verdict in words, and the page."""

import json
from collections.abc import Sequence
from pathlib import Path

from alignflow.evaluation.win_rates import Resampling
from tasks.comparison import export, page
from tasks.comparison.compute import compare
from tasks.comparison.results import Comparison, Method
from tasks.comparison.verdict import Verdict, verdict
from tasks.params.sections import Params


def write_reports(
    root: Path, policies: Sequence[str], params: Params, *, evaluated: Path | None = None, opened: str = ""
) -> tuple[Comparison, Verdict]:
    """Compare policies, the reference among them, and write ``reports/`` beside their evaluations.

    Args:
        root: of the project.
        policies: which are compared.
        params: all settings.
        evaluated: folder that holds the evaluations, if it is not the root.
        opened: how often the test side was opened, if these are its prompts.

    Returns:
        What the reports are made of.

    Raises:
        InputError: A file of an earlier stage is missing, broken or does not fit the others.
    """
    comparison = compare(
        root,
        policies,
        tuple(params.iterative_dpo.rounds),
        method_of(params),
        evaluated=evaluated,
        opened=opened,
    )
    said = verdict(comparison)
    folder = (evaluated or root) / "reports"
    folder.mkdir(exist_ok=True)
    for name, text in (
        ("comparison.json", _json(export.rows(comparison, said))),
        ("verdict.json", _json(export.summary(comparison, said))),
        ("comparison.html", page.render(comparison, said)),
    ):
        (folder / name).write_text(text, encoding="utf-8")
    return comparison, said


def method_of(params: Params) -> Method:
    """Return how policies are compared with these settings."""
    section = params.compare
    return Method(
        resampling=Resampling(samples=section.bootstrap_samples, confidence=section.confidence, seed=section.seed),
        length_ridge=section.length_ridge,
        kl_levels=section.kl_levels,
    )


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
