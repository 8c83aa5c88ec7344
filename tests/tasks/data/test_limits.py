"""What is said of rows that cannot be used."""

import pytest

from alignflow.data.gate import REASONS, Finding, Limits
from alignflow.data.rows import DataError
from tasks.data.limits import ADVICE, check, problems

EMPTY = Finding("empty", "empty text", 3, ("4", "7", "9"))
BROKEN = Finding("broken", "broken JSON", 1, ("2",))


def test_a_limit_that_is_exceeded_is_named_with_its_key():
    assert problems(10, [EMPTY, BROKEN], Limits(0.39, {"empty": 0.29, "broken": 0.1})) == [
        "4 of 10 rows cannot be used, more than data.max_dropped_fraction (0.39) allows; to go on without them: "
        "alignflow set data.max_dropped_fraction=0.4",
        "3 of 10 rows: empty text, more than data.max_fraction.empty (0.29) allows; to go on without them: "
        "alignflow set data.max_fraction.empty=0.3",
    ]
    assert problems(10, [EMPTY, BROKEN], Limits(0.4, {})) == []


def test_the_command_allows_enough():
    """1 of 333 is 0.3003 %; and nothing is asked of a reason below its limit."""
    (said,) = problems(333, [BROKEN], Limits(0.001, {"broken": 0.5}))
    assert said.endswith("alignflow set data.max_dropped_fraction=0.01")
    assert problems(333, [BROKEN], Limits(0.01, {})) == []


def test_no_row_and_no_usable_row_stop_whatever_the_limits():
    assert problems(0, [], Limits(1.0, {})) == ["there is no row"]
    assert problems(1, [BROKEN], Limits(1.0, {})) == ["none of 1 rows can be used"]


def test_the_message_names_data_rows_and_what_to_do():
    with pytest.raises(DataError) as stopped:
        check("some.jsonl", 10, [EMPTY, BROKEN], Limits(0.1, {}))
    said = str(stopped.value)
    for part in ("some.jsonl", "rows 4, 7, 9", "rows 2", "fill in or delete", "text has to be UTF-8"):
        assert part in said


def test_there_is_advice_for_every_reason():
    assert list(ADVICE) == list(REASONS)
