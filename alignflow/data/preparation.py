"""From rows of any source to four sides without a shared prompt, every row accounted for; memory stays flat.

``survey`` reads and measures each row once and keeps a few numbers in memory. Contradictions, duplicates, pairs and
sides then follow from these numbers alone, so neither the order of the rows nor the number of processes matters. The
texts of the rows that are kept are copied from the survey's file.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignflow.data import statistics
from alignflow.data.gate import EXAMPLES, Finding, contradictory, partners, repeated
from alignflow.data.near import matches, words_of
from alignflow.data.rows import Row
from alignflow.data.sources import Fault
from alignflow.data.split import Side, sides
from alignflow.data.survey import Ruler, Survey, survey
from alignflow.evaluation.language import languages

ALIKE_SHOWN = 20
"""Number of near-duplicate pairs in the report; all are counted."""
LANGUAGE_SAMPLE = 1000
"""Number of prompts whose language is detected: those with the smallest hashes, in any order of rows."""
SURE_LANGUAGE = 0.9
"""Minimum probability of a language in the report."""
MOST_TURNS = 8
"""Longer conversations are counted together."""
WARNINGS = {
    "control": "a control token is spelt in the text (it is encoded as text)",
    "within_line": "the prefix of a step pair ends within a line (the step begins where the file says)",
}
"""What is said of rows that are kept, by the column that marks them."""
EXCERPT = 160
"""Number of characters of a prompt in the report."""


@dataclass(frozen=True)
class Plan:
    """How rows are prepared."""

    validation_fraction: float
    judge_fraction: float
    test_fraction: float
    near_duplicate_threshold: float


@dataclass(frozen=True)
class Alike:
    """A training prompt that is almost one of the validation or test side."""

    row: str
    held_out_row: str
    similarity: float
    prompt: str
    held_out_prompt: str


@dataclass(frozen=True)
class Preparation:
    """What happens to every row."""

    survey: Survey
    side: NDArray[np.uint8]
    """Of ``Side``. (N,)"""
    partner: NDArray[np.int64]
    """Row with the bad answer that was paired with this row's good answer; -1 for none. (N,)"""
    used: NDArray[np.bool_]
    """Which rows are written on a side; rows that became part of another row's pair are not. (N,)"""
    unpaired: NDArray[np.bool_]
    """Bad answers without a good one, to prompts to train on: they are written apart. (N,)"""
    alike: list[Alike]
    ruler: Ruler

    @property
    def total(self) -> int:
        """Rows read."""
        return len(self.side)

    @property
    def has_rejected(self) -> NDArray[np.bool_]:
        """Which rows have a bad answer, their own or their partner's. (N,)"""
        found: NDArray[np.bool_] = self.survey.columns["has_rejected"] | (self.partner >= 0)
        return found

    def findings(self) -> list[Finding]:
        """Return why rows were dropped, the most frequent fault first."""
        codes = self.survey.columns["reason"]
        found = []
        for code, (reason, text) in enumerate(self.survey.faults[1:], start=1):
            rows = np.flatnonzero(codes == code)
            if rows.size:
                examples = tuple(_name(self.survey, row) for row in rows[:EXAMPLES].tolist())
                found.append(Finding(reason, text, int(rows.size), examples))
        return sorted(found, key=lambda f: (-f.rows, f.text))

    def lines(self, side: Side) -> Iterator[bytes]:
        """Yield the rows of a side as they are written, in the order of reading."""
        rows = np.flatnonzero(self.used & (self.side == side))
        for line, partner in zip(self.survey.lines(rows), self.partner[rows], strict=True):
            yield line if partner < 0 else _with_rejected(line, self.survey.line(int(partner)))

    def unpaired_lines(self) -> Iterator[bytes]:
        """Yield the bad answers without a good one, to prompts of the training side."""
        return self.survey.lines(np.flatnonzero(self.unpaired))


def prepare(rows: Iterable[Row | Fault], ruler: Ruler, plan: Plan, folder: Path, *, workers: int) -> Preparation:
    """Read, measure and check all rows, and decide what happens to each.

    Args:
        rows: rows of all sources.
        ruler: measures them.
        plan: fractions and threshold.
        folder: folder of the survey's files; the result reads texts from there.
        workers: number of processes that measure.
    """
    seen = survey(rows, ruler, folder, workers=workers)
    columns = seen.columns
    _compare(seen)
    side = sides(
        columns["draw"],
        validation_fraction=plan.validation_fraction,
        judge_fraction=plan.judge_fraction,
        test_fraction=plan.test_fraction,
    )
    partner = _partners(columns)
    used = columns["reason"] == 0
    used[partner[partner >= 0]] = False
    unpaired = used & (side == Side.TRAIN) & ~columns["has_chosen"] & columns["has_rejected"]
    alike = _separate(seen, side, used, plan.near_duplicate_threshold)
    used &= ~unpaired
    # a bad answer is dropped together with the good one that it was paired with
    columns["reason"][partner[partner >= 0]] = columns["reason"][partner >= 0]
    used &= columns["reason"] == 0
    unpaired &= columns["reason"] == 0
    return Preparation(seen, side, partner, used, unpaired, alike, ruler)


def report(prepared: Preparation) -> dict[str, Any]:
    """Return the report on prepared data, ready for JSON."""
    columns, findings = prepared.survey.columns, prepared.findings()
    dropped = int((columns["reason"] != 0).sum())
    return {
        "rows": prepared.total,
        "used": prepared.total - dropped,
        "dropped": dropped,
        "unpaired": int(prepared.unpaired.sum()),
        "findings": [
            {"reason": f.reason, "text": f.text, "rows": f.rows, "examples": list(f.examples)} for f in findings
        ],
        "warnings": [
            {
                "reason": reason,
                "text": text,
                "rows": int(rows.size),
                "examples": [_name(prepared.survey, row) for row in rows[:EXAMPLES].tolist()],
            }
            for reason, text in WARNINGS.items()
            if (rows := np.flatnonzero(columns[reason] & (columns["reason"] == 0))).size
        ],
        "near_duplicates": [vars(pair) for pair in prepared.alike],
        "sides": {side.name.lower(): _contents(prepared, side) for side in Side},
        "longest_response": _longest(prepared),
        "sources": _sources(prepared),
        "statistics": describe(prepared),
    }


def describe(prepared: Preparation) -> dict[str, Any]:
    """Return statistics of all rows that can be read; length bias is over the used pairs only."""
    columns = prepared.survey.columns
    read = columns["size"] > 0
    pairs = prepared.used & columns["has_chosen"] & prepared.has_rejected
    chosen, rejected = columns["chosen_length"][pairs], _rejected_lengths(prepared)[pairs]
    first = read & ~_repeats(columns["prompt"], read)
    return {
        "unit": prepared.ruler.unit,
        "prompt_length": statistics.quantiles(columns["prompt_length"][first]),
        "chosen_length": statistics.quantiles(columns["chosen_length"][read & columns["has_chosen"]]),
        "rejected_length": statistics.quantiles(columns["rejected_length"][read & columns["has_rejected"]]),
        "length_bias": statistics.length_bias(chosen, rejected),
        "histogram": statistics.histogram(chosen, rejected),
        "turns": statistics.counted(columns["turns"][first], MOST_TURNS),
        "prompts": int(first.sum()),
        "system_prompts": int((columns["system"] & first).sum()),
        "languages": _languages(prepared.survey, np.flatnonzero(first)),
    }


def _rejected_lengths(prepared: Preparation) -> NDArray[np.uint32]:
    """Return the lengths of the bad answers, those of partners among them. (N,)"""
    lengths: NDArray[np.uint32] = prepared.survey.columns["rejected_length"].copy()
    joined = prepared.partner >= 0
    lengths[joined] = lengths[prepared.partner[joined]]
    return lengths


def _longest(prepared: Preparation) -> int:
    """Return the length of the longest answer that is written; 0 where none is."""
    columns, written = prepared.survey.columns, prepared.used | prepared.unpaired
    lengths = np.maximum(columns["chosen_length"], _rejected_lengths(prepared))
    return int(lengths[written].max(initial=0))


def _with_rejected(good: bytes, bad: bytes) -> bytes:
    """Return the row of a good answer together with its partner's bad answer."""
    fields = {**json.loads(good), "rejected": json.loads(bad)["rejected"]}
    return (json.dumps(fields, ensure_ascii=False) + "\n").encode()


def _compare(seen: Survey) -> None:
    """Mark contradictions, then repetitions, among the rows without other faults."""
    columns = seen.columns
    for reason, find in (("contradictory", contradictory), ("duplicate", repeated)):
        sound = np.flatnonzero(columns["reason"] == 0)
        part = columns[["prompt", "chosen", "rejected"]][sound]
        bad = sound[find(part["prompt"], part["chosen"], part["rejected"])]
        if bad.size:
            columns["reason"][bad] = seen.fault(reason)


def _partners(columns: Any) -> NDArray[np.int64]:
    """Pair good with bad answers to the same prompt, of rows that have only one of both."""
    sound = columns["reason"] == 0
    ups = np.flatnonzero(sound & columns["has_chosen"] & ~columns["has_rejected"])
    downs = np.flatnonzero(sound & columns["has_rejected"] & ~columns["has_chosen"])
    first, second = partners(
        columns["prompt"][ups], columns["chosen"][ups], columns["prompt"][downs], columns["rejected"][downs]
    )
    found = np.full(len(columns), -1, np.int64)
    found[ups[first]] = downs[second]
    return found


def _separate(seen: Survey, side: NDArray[np.uint8], used: NDArray[np.bool_], threshold: float) -> list[Alike]:
    """Drop the training rows whose prompt is almost a validation or test prompt; return the first few pairs."""
    columns = seen.columns
    first = used & ~_repeats(columns["prompt"], used)
    trained = (side == Side.TRAIN) | (side == Side.JUDGE)
    held_out, others = np.flatnonzero(first & ~trained), np.flatnonzero(first & trained)

    def text_of(is_held_out: bool, row: int) -> str:
        line = json.loads(seen.line(int((held_out if is_held_out else others)[row])))
        return words_of(line["messages"])

    found = matches(columns["bands"][held_out], columns["bands"][others], text_of=text_of, threshold=threshold)
    for exact, reason in ((True, "both_sides"), (False, "near_duplicate")):
        prompts = columns["prompt"][others[[row for row, _, alike in found if (alike == 1.0) is exact]]]
        bad = used & trained & np.isin(columns["prompt"], prompts)
        if bad.any():
            columns["reason"][bad] = seen.fault(reason)
    return [_alike(seen, int(others[row]), int(held_out[other]), alike) for row, other, alike in found[:ALIKE_SHOWN]]


def _alike(seen: Survey, row: int, other: int, alike: float) -> Alike:
    texts = [json.loads(seen.line(r))["prompt"][:EXCERPT] for r in (row, other)]
    return Alike(_name(seen, row), _name(seen, other), round(alike, 3), *texts)


def _repeats(prompts: NDArray[np.uint64], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the selected rows repeat the prompt of an earlier selected row. (N,)"""
    found = np.zeros(len(prompts), bool)
    found[among] = repeated(prompts[among]) if among.any() else False
    return found


def _contents(prepared: Preparation, side: Side) -> dict[str, int]:
    columns = prepared.survey.columns
    here, good, bad = prepared.used & (prepared.side == side), columns["has_chosen"], prepared.has_rejected
    return {
        "rows": int(here.sum()),
        "pairs": int((here & good & bad & ~columns["step"]).sum()),
        "step_pairs": int((here & columns["step"]).sum()),
        "demonstrations": int((here & good & ~bad).sum()),
        "prompts_only": int((here & ~good).sum()),
        "prompts": int(np.unique(columns["prompt"][here]).size),
    }


def _sources(prepared: Preparation) -> list[dict[str, Any]]:
    columns = prepared.survey.columns
    return [
        {
            "source": name,
            "rows": int((columns["source"] == place).sum()),
            "used": int(((columns["source"] == place) & (prepared.used | prepared.unpaired)).sum()),
        }
        for place, name in enumerate(prepared.survey.sources)
    ]


def _languages(seen: Survey, rows: NDArray[np.intp]) -> dict[str, int]:
    """Return the number of prompts in each language, the most frequent first; "?" counts the uncertain ones."""
    if rows.size > LANGUAGE_SAMPLE:
        rows = rows[np.argpartition(seen.columns["prompt"][rows], LANGUAGE_SAMPLE)[:LANGUAGE_SAMPLE]]

    def texts() -> Iterator[str]:
        for row in sorted(rows.tolist()):
            line = json.loads(seen.line(row))
            yield f"{line['prompt']}\n{line['chosen'] or line['rejected'] or ''}"

    told = languages(list(texts()), least=SURE_LANGUAGE)
    return dict(Counter(code or "?" for code in told).most_common())


def _name(seen: Survey, row: int) -> str:
    """Return a row's number; with several sources, source and number. Unique file names are written without folders."""
    number = str(seen.columns["number"][row])
    if len(seen.sources) == 1:
        return number
    source = seen.sources[seen.columns["source"][row]]
    last = PurePath(source).name
    alone = sum(PurePath(other).name == last for other in seen.sources) == 1
    return f"{last if alone else source}:{number}"
