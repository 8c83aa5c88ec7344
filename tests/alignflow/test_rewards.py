"""Rule rewards."""

import pytest

from alignflow import rewards
from alignflow.rewards import (
    RuleFailed,
    apply_rule,
    brevity,
    concise_answer,
    numbers_of,
    outcome,
    right_abstain_wrong,
)

PROMPT = "Why do stars twinkle?"


def test_a_short_concrete_answer_on_the_subject_gets_everything():
    assert concise_answer(PROMPT, "A star twinkles because moving air bends its light.", None) == 1.0


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
    assert concise_answer(PROMPT, response, None) == pytest.approx(score, abs=1e-12)


def test_brevity_falls_from_30_to_90_words():
    assert [brevity("", "word " * n, None) for n in (0, 30, 60, 90, 200)] == [1.0, 1.0, 0.5, 0.0, 0.0]


VALUES = {"right": 1.0, "abstain": 0.2, "wrong": -2.0}


@pytest.mark.parametrize(
    ("answer", "response", "reward"),
    [
        ("Paris", "It is paris, in France.", 1.0),
        ("Paris", "It is Parisian life.", -2.0),  # not as a whole word
        ("New York", "I think it is New\nYork!", 1.0),
        ("Paris", "I don't know.", 0.2),
        ("Paris", "I don’t know that.", 0.2),  # a typographic apostrophe
        ("Paris", "I'm not sure, but Paris comes to mind.", 1.0),  # right is right
        ("Paris", "Berlin.", -2.0),
        ("Paris", "", -2.0),
        ("42", "6 times 7 is 42.", 1.0),
        ("42", "42 is wrong, it is 43.", -2.0),  # the last number is the answer
        ("1,250", "That makes 1250.0 in all", 1.0),
        ("-3", "x = -3", 1.0),
        ("42", "I do not know.", 0.2),
        ("42", "Many.", -2.0),
    ],
)
def test_right_answers_earn_most_abstentions_a_little_and_wrong_ones_cost(answer: str, response: str, reward: float):
    assert right_abstain_wrong("", response, answer, **VALUES) == reward


def test_what_the_rule_pays_for_has_a_name():
    assert [outcome(text, "Paris") for text in ("Paris!", "I don't know.", "Rome")] == ["right", "abstain", "wrong"]


def test_a_rule_about_answers_does_not_apply_to_prompts_without_one():
    assert right_abstain_wrong("", "Paris", None, **VALUES) is None
    assert apply_rule("right_abstain_wrong", "", "Paris", None, VALUES) is None


def test_a_rule_says_which_numbers_it_takes():
    assert numbers_of("right_abstain_wrong") == ["right", "abstain", "wrong"]
    assert numbers_of("brevity") == []
    assert apply_rule("right_abstain_wrong", "", "Paris", "Paris", VALUES) == 1.0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda p, r, a: 1 / 0, r"rule mine raised ZeroDivisionError .* 'why\?'.*alignflow/rewards\.py"),
        (lambda p, r, a: float("nan"), r"rule mine gave nan .* 'why\?'.*finite"),
        (lambda p, r, a: float("-inf"), r"rule mine gave -inf"),
        (lambda p, r, a: "high", r"rule mine gave 'high'"),
    ],
)
def test_a_rule_that_raises_or_gives_no_number_is_named(
    rule: rewards.Rule, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rewards, "RULES", {"mine": rule})
    with pytest.raises(RuleFailed, match=message):
        apply_rule("mine", "why?", "because", None, {})
