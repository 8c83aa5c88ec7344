"""Show in a terminal what data is and whether it can be used."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignflow.data.gate import REASONS
from tasks.data_check import FIRST, Checked

if TYPE_CHECKING:
    from tasks.params import Data


def view(checked: Checked) -> RenderableType:
    """Return everything found as something to print; texts of the data are never read as markup."""
    report, statistics = checked.report, checked.report["statistics"]
    seen = "" if checked.whole else f" (the first {FIRST}; the stage looks at all)"
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_row("form", checked.form)
    facts.add_row("rows", f"{report['rows']}{seen}: {report['used']} used, {report['dropped']} dropped")
    if report["unused"]:
        facts.add_row("", f"{report['unused']} bad answers have no good one beside them and are not used")
    for side, contents in report["sides"].items():
        facts.add_row(side, ", ".join(_contents(contents)))
    facts.add_row("turns", _counts(statistics["turns"]))
    facts.add_row("languages", _counts(statistics["languages"]))
    parts: list[RenderableType] = [facts, Text(), _lengths(statistics)]
    parts += [Text(line) for line in _remarks(statistics)]
    if report["findings"] or report["warnings"]:
        parts += [Text(), _faults(report)]
    parts += [Text(), *_verdict(checked)]
    return Group(*parts)


def _contents(contents: dict[str, int]) -> Iterator[str]:
    yield f"{contents['prompts']} prompts"
    for what in ("pairs", "demonstrations", "prompts_only"):
        if contents[what]:
            yield f"{contents[what]} {what.replace('_', ' ')}"


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


def _remarks(statistics: dict[str, Any]) -> Iterator[str]:
    if bias := statistics["length_bias"]:
        yield (
            f"chosen is shorter in {bias['shorter']:.0%} of the pairs, longer in {bias['longer']:.0%}; chosen minus "
            f"rejected {bias['difference']:+.1f} (95 %: {bias['low']:+.1f} to {bias['high']:+.1f})"
        )
    if statistics["unit"] == "words":
        yield "no tokenizer yet (`alignflow stage base` brings it): lengths count words, and none was found too long"


def _faults(report: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("rows", justify="right")
    for name in ("what", "for example row", "what to do"):
        table.add_column(name)
    for finding in report["findings"]:
        rows = Text(", ".join(finding["examples"]))
        table.add_row(str(finding["rows"]), Text(finding["text"]), rows, REASONS[finding["reason"]].advice)
    for warning in report["warnings"]:
        table.add_row(
            str(warning["rows"]), warning["text"], Text(", ".join(warning["examples"])), "nothing: it is kept"
        )
    return table


def _verdict(checked: Checked) -> Iterator[Text]:
    for problem in checked.problems:
        yield Text(f"prepare would stop: {problem}", style="bold red")
    if not checked.problems:
        yield Text("prepare would take this data", style="green")


def command(name: str, checked: Checked, data: "Data") -> str:
    """Return the command that takes the data over, with limits that 99 of 100 texts fit in where the present do not."""
    statistics = checked.report["statistics"]
    settings = [f"data.path={name}"] + ([f"data.format={data.format}"] if data.format != "auto" else [])
    for limit, texts in (("max_prompt_length", ("prompt",)), ("max_response_length", ("chosen", "rejected"))):
        wanted = max((statistics[f"{text}_length"].get("99%", 0.0) for text in texts), default=0.0)
        if statistics["unit"] == "tokens" and wanted > getattr(data, limit):
            settings.append(f"data.{limit}={wanted:.0f}")
    return f"alignflow set {' '.join(settings)}"
