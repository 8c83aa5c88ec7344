"""Write the comparison over seeds: as JSON, as a page, as a table and lines for the terminal, as metrics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from alignflow.evaluation.seeds import FEWEST
from alignflow.evaluation.win_rates import Rate
from tasks import html
from tasks.comparison import page, svg
from tasks.comparison.wording import between, listing, percent
from tasks.judges import PROXY, judge_title
from tasks.seeds.compute import PolicyOverSeeds, SeedsComparison, compare_seeds

TEMPLATE = page.TEMPLATE.with_name("seeds.html.j2")  # shares style and cells with the page of one run


@dataclass(frozen=True)
class SeedsReport:
    """The comparison over seeds in words and numbers."""

    comparison: SeedsComparison
    experiments: tuple[str, ...]
    headline: str
    sentences: Mapping[str, str]
    """By policy."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The verdict for a terminal, one statement a line."""
        return (self.headline, *self.sentences.values())

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers for the tracking service."""
        flat: dict[str, float] = {}
        for each in self.comparison.policies:
            flat[f"better_seeds/{each.policy}"] = float(each.better)
            for judge, rate in each.against.rates.items():
                key = "win_rate" if judge == PROXY else "judge_win_rate"
                end = each.policy if judge == PROXY else f"{judge}/{each.policy}"
                flat |= {f"{key}/{end}": rate.rate, f"{key}_low/{end}": rate.interval.low}
                flat[f"{key}_high/{end}"] = rate.interval.high
        return flat


def write_seeds_report(roots: Sequence[Path], folder: Path, name: str) -> tuple[SeedsReport, Path]:
    """Compare over the runs of several seeds and write ``NAME.json`` and ``NAME.html``; return report and page.

    Args:
        roots: of each seed's run, named as its experiment.
        folder: of the reports.
        name: of the files.

    Raises:
        InputError: a file of a run is missing, broken or does not fit the others.
    """
    comparison = compare_seeds(roots)
    report = SeedsReport(
        comparison,
        tuple(root.name for root in roots),
        _headline(comparison),
        {each.policy: _sentence(each, comparison) for each in comparison.policies},
    )
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_content(report), indent=2) + "\n", encoding="utf-8")
    written = folder / f"{name}.html"
    written.write_text(_page(report), encoding="utf-8")
    return report, written


def table(report: SeedsReport) -> Table:
    """Return the comparison as a table for a terminal."""
    comparison = report.comparison
    drawn = Table(
        title=f"Policies over {len(comparison.seeds)} seeds and {comparison.prompts} prompts",
        caption="wins in percent, mean over seeds; intervals contain seeds and prompts",
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for head in ("policy", *(judge_title(judge) for judge in comparison.judges), "better with"):
        drawn.add_column(head, justify="left" if head == "policy" else "right")
    for each in comparison.policies:
        rates = [
            f"{100 * rate.rate:.0f} {100 * rate.interval.low:.0f}–{100 * rate.interval.high:.0f}"
            for rate in (each.against.rates.get(judge) for judge in comparison.judges)
            if rate
        ]
        drawn.add_row(each.policy, *rates, f"{each.better} of {len(comparison.seeds)} seeds")
    return drawn


def _headline(comparison: SeedsComparison) -> str:
    count = len(comparison.seeds)
    if count < FEWEST:
        return f"{count} seeds are too few for a verdict: it needs at least {FEWEST}."
    names = listing([each.title for each in comparison.better])
    if not names:
        return f"Over {count} seeds, no policy is shown to be better than the reference."
    return f"Over {count} seeds, {names} {'is' if len(comparison.better) == 1 else 'are'} better than the reference."


def _sentence(found: PolicyOverSeeds, comparison: SeedsComparison) -> str:
    rates = [
        f"{percent(rate.rate)} ({between(rate.interval)}) by the {judge_title(judge)}"
        for judge, rate in found.against.rates.items()
    ]
    alone = f"Alone, {found.better} of {len(comparison.seeds)} seeds call it better"
    return f"{found.title}: {found.standing}. Its win rate is {listing(rates)}. {alone}."


def _content(report: SeedsReport) -> dict[str, object]:
    comparison = report.comparison
    return {
        "headline": report.headline,
        "lines": list(report.lines),
        "prompts": comparison.prompts,
        "confidence": comparison.confidence,
        "margin": comparison.margin,
        "runs": [
            {"experiment": experiment, "seeds": seeds}
            for experiment, seeds in zip(report.experiments, comparison.seeds, strict=True)
        ],
        "policies": [
            {
                "policy": each.policy,
                "standing": each.standing,
                "sentence": report.sentences[each.policy],
                "better_seeds": each.better,
                "judges": {
                    judge: {
                        **_rate(rate),
                        "by_seed": list(each.by_seed[judge]),
                        "complete": _rate(each.against.complete.get(judge)),
                        "equal_length": _rate(each.against.equal_length.get(judge)),
                        "predicted": each.against.predicted.get(judge),
                    }
                    for judge, rate in each.against.rates.items()
                },
            }
            for each in comparison.policies
        ],
    }


def _rate(rate: Rate | None) -> dict[str, float]:
    if rate is None:
        return {}
    return {
        "win_rate": rate.rate,
        "low": rate.interval.low,
        "high": rate.interval.high,
        "prompts": rate.prompts,
        "p_value": rate.p_value,
        "adjusted_p": rate.adjusted_p,
    }


def _page(report: SeedsReport) -> str:
    policies = [each.policy for each in report.comparison.policies]
    content = {
        "report": report,
        "comparison": report.comparison,
        "fewest": FEWEST,
        "policies": policies,
        "colours": svg.theme(policies),
    }
    return html.render(TEMPLATE, content, page.FILTERS)
