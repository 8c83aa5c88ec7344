"""Faults between rows, and the limits above which a run stops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignflow.data import sources
from alignflow.data.forms import faults
from alignflow.data.gate import (
    Finding,
    Limits,
    contradictory,
    exceeded,
    mix,
    partners,
    reason_of,
    repeated,
)
from alignflow.data.sources import Fault


def hashes(*values):
    return np.array(values, np.uint64)


DUPLICATES = Finding("duplicate", "repeated row", 3, ("4", "7", "9"))
CONTRARY = Finding("contradictory", "the same answers judged both ways", 3, ("4", "7", "9"))
BROKEN = Finding("broken", "broken JSON", 1, ("2",))


def test_nothing_exceeds_at_the_limit_and_something_above_it():
    """4 of 10 rows are dropped."""
    assert exceeded(10, [CONTRARY, BROKEN], Limits(0.4, {})) == []
    assert exceeded(10, [CONTRARY, BROKEN], Limits(0.39, {})) == [(4, None, 0.39)]


@pytest.mark.parametrize("reason", ["duplicate", "tie", "answer"])
def test_what_is_dropped_without_damage_counts_towards_its_own_limit_alone(reason: str):
    """Of 10 rows 7 say nothing new and 1 is broken."""
    findings = [Finding(reason, "-", 7, ("1",)), BROKEN]
    assert exceeded(10, findings, Limits(0.1, {})) == []
    assert exceeded(10, findings, Limits(0.09, {})) == [(1, None, 0.09)]
    assert exceeded(10, findings, Limits(0.1, {reason: 0.6})) == [(7, reason, 0.6)]
    assert exceeded(8, findings, Limits(1.0, {})) == [(8, None, 1.0)]


def test_a_single_reason_has_its_own_limit():
    assert exceeded(10, [DUPLICATES, BROKEN], Limits(1.0, {"duplicate": 0.3, "broken": 0.1})) == []
    found = exceeded(10, [DUPLICATES, BROKEN], Limits(1.0, {"duplicate": 0.29, "broken": 0.1}))
    assert found == [(3, "duplicate", 0.29)]


def test_ways_of_being_broken_count_together():
    findings = [BROKEN, Finding("broken", "not UTF-8", 1, ("3",))]
    assert exceeded(10, findings, Limits(1.0, {"broken": 0.1})) == [(2, "broken", 0.1)]


def test_no_usable_row_is_too_few_whatever_the_limits():
    assert exceeded(1, [BROKEN], Limits(1.0, {})) == [(1, None, 1.0)]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (sources.BROKEN_JSON, "broken"),
        (sources.NOT_UTF8, "broken"),
        ("chosen is not a text", "wrong_type"),
        (faults.BAD_MARGIN, "wrong_type"),
        (faults.EMPTY, "empty"),
        (faults.ORDER, "role_order"),
        (faults.CUT_CHAT, "broken"),
        (faults.TIE, "tie"),
        (faults.MEDIA, "media"),
        (faults.LEFT_OUT + faults.EMPTY, "answer"),
    ],
)
def test_a_fault_of_reading_has_its_reason(said: str, reason: str):
    assert reason_of(Fault("f", 1, said)) == reason


def test_both_judgements_of_a_contradiction_are_named_and_nothing_else():
    """Rows 0, 1, 3: A over B, B over A, A over B again. Row 2 has another prompt, row 4 other answers."""
    prompt, chosen, rejected = hashes(1, 1, 2, 1, 1), hashes(8, 9, 9, 8, 8), hashes(9, 8, 8, 9, 7)
    assert contradictory(prompt, chosen, rejected).tolist() == [True, True, False, True, False]


def test_an_answer_called_good_and_bad_contradicts_itself_and_a_prompt_alone_does_not():
    """0 means no answer: thumbs up and down for answer 8, up for 7, and twice a prompt alone."""
    prompt, chosen, rejected = hashes(1, 1, 1, 1, 1), hashes(8, 0, 7, 0, 0), hashes(0, 8, 0, 0, 0)
    assert contradictory(prompt, chosen, rejected).tolist() == [True, True, False, False, False]


def test_the_first_of_equal_rows_is_kept():
    assert repeated(hashes(1, 2, 1, 1), hashes(5, 5, 5, 6)).tolist() == [False, False, True, False]


def test_good_and_bad_answers_to_a_prompt_are_paired_one_to_one():
    """Prompt 1: goods 20, 10 and one bad 30; prompt 2: a good and a bad; prompt 3: a bad alone."""
    ups, downs = partners(hashes(1, 1, 2), hashes(20, 10, 5), hashes(3, 2, 1), hashes(6, 7, 30))
    assert sorted(zip(ups.tolist(), downs.tolist(), strict=True)) == [(1, 2), (2, 1)]


def test_no_answers_give_no_pair():
    ups, downs = partners(hashes(), hashes(), hashes(1), hashes(2))
    assert (ups.tolist(), downs.tolist()) == ([], [])


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), unique=True, max_size=50))
def test_different_rows_have_different_hashes(rows: list[tuple[int, int]]):
    found = mix(*(hashes(*column) for column in zip(*rows, strict=True))) if rows else hashes()
    assert len(set(found.tolist())) == len(rows)
