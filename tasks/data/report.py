"""The report on the data in sentences, in figures and as a table."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from alignflow.data import statistics
from tasks.params.sections import Data


def summary(report: Mapping[str, Any]) -> str:
    """Return a sentence on how many rows are used, and for what."""
    sides = report["sides"]
    parts = [f"{sides['train']['rows']} to train", f"{sides['judge']['rows']} for the judge model",
             f"{sides['validation']['rows']} for validation", f"{sides['test']['rows']} for the test",
             f"{report['dropped']} dropped"]  # fmt: skip
    if report["unpaired"]:
        parts.append(f"{report['unpaired']} bad answers without a good one for kto to train on")
    return f"{report['rows']} rows: {', '.join(parts)}"


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the summary, then a line for each fault that was found."""
    yield summary(report)
    for fault in _faults(report):
        yield f"{fault['rows']:7d}  {fault['text']} (rows {', '.join(fault['examples'])})"


def empty_sides(report: Mapping[str, Any], data: Data) -> list[str]:
    """Return a sentence for each side that needs prompts and has none."""
    if not report["used"]:
        return []  # the reason that all rows were dropped is reported instead
    needed = [("train", "validation", "to train on"), ("validation", "validation", "to evaluate on")]
    if data.test_fraction:
        needed.append(("test", "test", "to test on"))
    return [
        f"no prompt is left {purpose}; change data.{key}_fraction ({getattr(data, f'{key}_fraction')}) or add prompts "
        "(conversations with the same first messages stay on one side)"
        for side, key, purpose in needed
        if not report["sides"][side]["rows"]
    ]


def cut_answers(report: Mapping[str, Any], limit: int) -> list[str]:
    """Return a sentence if evaluation would cut off answers as long as the longest response of the data.

    Args:
        report: on the data, its lengths in tokens.
        limit: evaluate.max_response_length.
    """
    longest = report["longest_response"]
    if limit >= longest:
        return []
    return [
        f"the longest response has {longest} tokens, and evaluation would cut answers off at {limit}; "
        f"set evaluate.max_response_length={longest} or more, or lower data.max_response_length"
    ]


def faults(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was found in rows, dropped or not, as rows of a table."""
    return [{**fault, "examples": ", ".join(fault["examples"])} for fault in _faults(report)]


def digests_by_name(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the version of every file of the data, as tags."""
    return {f"data.{source['name']}": source["digest"] for source in report["data"]}


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Return what became of the rows, and their statistics, as metrics."""
    dropped = Counter[str]()
    for finding in report["findings"]:
        dropped[f"dropped/{finding['reason']}"] += finding["rows"]
    return {
        "rows": float(report["rows"]),
        "dropped": float(report["dropped"]),
        "unpaired": float(report["unpaired"]),
        "special_tokens": float(sum(w["rows"] for w in report["warnings"] if w["reason"] == "control")),
        **{key: float(rows) for key, rows in dropped.items()},
        **{
            f"{side}_{what}": float(contents[what])
            for side, contents in report["sides"].items()
            for what in ("rows", "prompts", "pairs", "demonstrations")
        },
        **statistics.flat(report["statistics"]),
    }


def _faults(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*report["findings"], *report["warnings"]]
