"""What is said of rows that cannot be used."""

import pytest

from alignflow.data.gate import REASONS, Finding, Limits
from alignflow.data.rows import DataError
from tasks.data.limits import ADVICE, check, problems

DUPLICATES = Finding("duplicate", "repeated row", 3, ("4", "7", "9"))
BROKEN = Finding("broken", "broken JSON", 1, ("2",))


def test_a_limit_that_is_exceeded_is_named_with_its_key():
    assert problems(10, [DUPLICATES, BROKEN], Limits(0.39, {"duplicate": 0.29, "broken": 0.1})) == [
        "4 of 10 rows cannot be used, more than data.max_dropped_fraction (0.39) allows",
        "3 of 10 rows: repeated row, more than data.max_fraction.duplicate (0.29) allows",
    ]
    assert problems(10, [DUPLICATES, BROKEN], Limits(0.4, {})) == []


def test_no_row_and_no_usable_row_stop_whatever_the_limits():
    assert problems(0, [], Limits(1.0, {})) == ["there is no row"]
    assert problems(1, [BROKEN], Limits(1.0, {})) == ["none of 1 rows can be used"]


def test_the_message_names_data_rows_and_what_to_do():
    with pytest.raises(DataError) as stopped:
        check("some.jsonl", 10, [DUPLICATES, BROKEN], Limits(0.1, {}))
    said = str(stopped.value)
    for part in ("some.jsonl", "rows 4, 7, 9", "rows 2", "delete the copies", "text has to be UTF-8"):
        assert part in said


def test_there_is_advice_for_every_reason():
    assert list(ADVICE) == list(REASONS)
