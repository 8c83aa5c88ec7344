"""Show in a terminal what data is and whether it can be used."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasks.data.check import FIRST, Checked
from tasks.data.limits import ADVICE
from tasks.data.settings import in_words

CONTENTS = {
    "pairs": "pairs",
    "step_pairs": "step pairs",
    "demonstrations": "chosen answers alone",
    "prompts_only": "without a judged answer",
}
"""What a row may hold, by its key in the report."""

LIMITS = {"max_prompt_length": ("prompt",), "max_response_length": ("chosen", "rejected")}
"""Keys of the section ``data``, and the texts whose lengths they limit."""

if TYPE_CHECKING:
    from tasks.params.sections import Data


def view(checked: Checked) -> RenderableType:
    """Return everything found as something to print; texts of the data are never read as markup."""
    report, statistics = checked.report, checked.report["statistics"]
    seen = "" if checked.whole else f" (the first {FIRST}; the stage checks all)"
    facts = Table(box=None, pad_edge=False, show_header=False)
    for path, layout in checked.layouts.items():
        facts.add_row("form", Text(f"{path}: {in_words(layout)}"))
        for line in layout.lines() if layout else ():
            facts.add_row("columns", Text(line))
    facts.add_row("rows", f"{report['rows']}{seen}: {report['used']} used, {report['dropped']} dropped")
    if report["unpaired"]:
        facts.add_row("kto", f"{report['unpaired']} bad answers without a good one, which kto alone trains on")
    for side, contents in report["sides"].items():
        facts.add_row(side, ", ".join(_contents(contents)))
    facts.add_row("user turns", _counts(statistics["turns"]))
    facts.add_row("languages", _counts(statistics["languages"]))
    parts: list[RenderableType] = [facts, Text(), _lengths(statistics)]
    parts += [Text(line) for line in _remarks(report)]
    if report["findings"] or report["warnings"]:
        parts += [Text(), _faults(report)]
    parts += [Text(), *_verdict(checked)]
    return Group(*parts)


def _contents(contents: dict[str, int]) -> Iterator[str]:
    yield f"{contents['prompts']} prompts"
    for what, name in CONTENTS.items():
        if contents[what]:
            yield f"{contents[what]} {name}"


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name if name != '?' else 'unclear'}: {rows}" for name, rows in found.items())


def _lengths(statistics: dict[str, Any]) -> Table:
    names = ("mean", "50%", "95%", "99%", "max")
    table = Table(box=None, pad_edge=False)
    table.add_column(statistics["unit"])
    for name in names:
        table.add_column(name, justify="right")
    for what in ("prompt", "chosen", "rejected"):
        if found := statistics[f"{what}_length"]:
            table.add_row(what, *(f"{found[name]:.0f}" for name in names))
    return table


def _remarks(report: dict[str, Any]) -> Iterator[str]:
    statistics = report["statistics"]
    if bias := statistics["length_bias"]:
        yield (
            f"chosen is shorter in {bias['shorter']:.0%} of the pairs, longer in {bias['longer']:.0%}; chosen minus "
            f"rejected: {bias['difference']:+.1f} {statistics['unit']} on average "
            f"(95 %: {bias['low']:+.1f} to {bias['high']:+.1f})"
        )
    elif report["used"]:
        yield (
            "no pair of a chosen and a rejected answer: reward models and DPO cannot learn from this; PPO and GRPO can "
            "with rewards.rules and rewards.reward_model=0 (without chosen answers also sft.enabled=false)"
        )
    if statistics["unit"] == "words":
        yield "no tokenizer yet (run `alignflow stage base`): lengths are in words, and no text counts as too long"


def _faults(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("rows", justify="right")
    for name in ("what", "for example row", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in report["findings"]:
        rows = Text(", ".join(finding["examples"]))
        table.add_row(str(finding["rows"]), Text(finding["text"]), rows, ADVICE[finding["reason"]])
    for warning in report["warnings"]:
        table.add_row(
            str(warning["rows"]), warning["text"], Text(", ".join(warning["examples"])), "nothing: it is kept"
        )
    return table


def _verdict(checked: Checked) -> Iterator[Text]:
    for problem in checked.problems:
        yield Text(f"prepare would stop: {problem}", style="bold red")
    if not checked.problems:
        yield Text("prepare would accept this data", style="green")


def command(name: str, checked: Checked, chosen: "Data", present: "Data") -> str:
    """Return the command that makes params.yaml read the data as it was checked, with limits that its texts fit in.

    Empty if the data cannot be used whatever the limits are.

    Args:
        name: file, folder or data set of the Hub.
        checked: what was found.
        chosen: settings that it was checked with.
        present: settings of params.yaml.
    """
    limits = _limits(checked, chosen)
    if checked.problems and not limits:
        return ""
    local = Path(name).exists()
    settings = [f"data.path={name}"] if local else []
    sources = [s.model_dump(exclude_none=True) for s in chosen.sources]
    if not local:  # only a commit keeps the data the same
        sources = [{"revision": "COMMIT", **source} for source in sources or [{"path": name, "weight": 1}]]
    if sources or present.sources:
        settings.append(f"data.sources={json.dumps(sources)}")
    if chosen.preset != present.preset:
        settings.append(f"data.preset={chosen.preset or 'null'}")
    if chosen.format != present.format:
        settings.append(f"data.format={chosen.format}")
    if chosen.columns != present.columns:
        settings.append(f"data.columns={json.dumps(chosen.columns)}")
    return shlex.join(["alignflow", "set", *settings, *limits])


def _limits(checked: Checked, data: "Data") -> list[str]:
    """Return the limits that texts do not fit in, raised for 99 of 100 texts, or for all where that drops too many."""
    report, statistics = checked.report, checked.report["statistics"]
    if statistics["unit"] != "tokens":
        return []
    lengths = {
        limit: [found for text in texts if (found := statistics[f"{text}_length"])] for limit, texts in LIMITS.items()
    }
    short = {limit: found for limit, found in lengths.items() if any(f["max"] > getattr(data, limit) for f in found)}
    others = sum(f["rows"] for f in report["findings"] if f["reason"] not in ("prompt_too_long", "response_too_long"))
    expected = others / max(report["rows"], 1) + 0.01 * sum(map(len, short.values()))
    most = "99%" if expected <= data.max_dropped_fraction else "max"
    wanted = {limit: max(f[most] for f in found) for limit, found in short.items()}
    return [f"data.{limit}={value:.0f}" for limit, value in wanted.items() if value > getattr(data, limit)]
