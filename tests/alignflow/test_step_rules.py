"""Rules for single steps."""

import pytest

from alignflow.step_rules import column_addition, written_columns

PROMPT = "Add 347 and 598. One column a line, from the right."
STEPS = ["7+8=15\n", "4+9+1=14\n", "3+5+1=9\n", "Answer: 945"]


def test_columns_by_hand():
    assert written_columns(347, 598) == ["7+8=15", "4+9+1=14", "3+5+1=9"]
    assert written_columns(500, 500) == ["0+0=0", "0+0=0", "5+5=10"]
    assert written_columns(9, 95) == ["9+5=14", "0+9+1=10"]


def test_every_step_of_a_right_sum_is_right():
    assert [column_addition(PROMPT, STEPS[:k], step, "945") for k, step in enumerate(STEPS)] == [True] * 4


@pytest.mark.parametrize(
    ("k", "step"),
    [(0, "7+8=14\n"), (1, "4+9=13\n"), (1, "3+5+1=9\n"), (2, "3+5+1=9 or so\n"), (3, "Answer: 954"), (3, "Answer:")],
)
def test_a_wrong_step_is_wrong(k: int, step: str):
    assert column_addition(PROMPT, STEPS[:k], step, "945") is False


def test_what_is_no_sum_is_not_judged():
    assert column_addition("Who was it?", [], "7+8=15", "945") is None
    assert column_addition(PROMPT, STEPS[:3], "Answer: 945", None) is None
