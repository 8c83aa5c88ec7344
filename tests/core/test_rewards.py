"""Rule rewards."""

import pytest

from alignflow.rewards import RULES, brevity, concise_answer, rule

PROMPT = "Why do stars twinkle?"


def test_a_short_concrete_answer_on_the_subject_gets_everything():
    assert concise_answer(PROMPT, "A star twinkles because moving air bends its light.") == 1.0


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("Stars twinkle because moving air bends their light", 5 / 6),  # no end of sentence
        ("Stars twinkle.", 5 / 6),  # too short
        ("Stars are far. Air moves a lot. It bends light rays.", 5 / 6),  # three sentences
        ("Sure, stars twinkle because moving air bends light.", 5 / 6),  # filler
        ("- Stars twinkle because moving air bends light.", 5 / 6),  # list
        ("Stars twinkle at night and stars twinkle at night.", 5 / 6),  # a phrase repeated
        ("Moving air bends light rays on their way.", 1 / 2),  # off the subject
        ("", 0.0),
        ("?!", 0.0),
    ],
)
def test_each_fault_costs_its_part(response: str, score: float):
    assert concise_answer(PROMPT, response) == pytest.approx(score, abs=1e-12)


def test_brevity_falls_from_30_to_90_words():
    assert [brevity("", "word " * n) for n in (0, 30, 60, 90, 200)] == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_a_rule_is_found_by_its_name_and_an_unknown_one_refused():
    assert rule("brevity") is RULES["brevity"]
    with pytest.raises(ValueError, match=r"no rule 'brevty'.*brevity"):
        rule("brevty")
