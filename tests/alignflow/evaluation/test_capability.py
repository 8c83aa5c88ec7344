"""Multiple choice and perplexity by log-likelihood."""

import json
import math
from pathlib import Path

import pytest

from alignflow.evaluation.capability import (
    BadQuestion,
    Question,
    choice_accuracy,
    encode_choices,
    perplexity,
    read_question,
)
from tests.close import FLOAT64, close
from tests.tiny import write_tokenizer

FILE = Path(__file__).resolve().parents[3] / "data/capability.jsonl"
PLAIN = {"question": "How many?", "choices": ["one", "two"], "answer": 1}


def test_the_choice_of_the_highest_likelihood_a_token_is_taken():
    """-2 over 1 token loses to -3 over 3; -1 wins over -4 over 2. Right are the second and the first."""
    questions = [Question("", ("a", "b"), 1), Question("", ("a", "b"), 0)]
    assert choice_accuracy([-2.0, -3.0, -1.0, -4.0], [1, 3, 1, 2], questions) == 1.0
    assert choice_accuracy([-2.0, -3.0, -1.0, -4.0], [1, 1, 1, 2], questions) == 0.5


def test_questions_may_have_unlike_numbers_of_choices():
    questions = [Question("", ("a", "b", "c"), 2), Question("", ("a", "b"), 0)]
    assert choice_accuracy([-3.0, -2.0, -1.0, -1.0, -5.0], [1] * 5, questions) == 1.0


def test_perplexity_is_per_token_over_all_texts():
    """Three tokens of probability 1/2 and one of 1/8: (2³·8)^(1/4) = 2^1.5."""
    close(perplexity([-3 * math.log(2), -math.log(8)], [3, 1]), 2**1.5, FLOAT64)


def test_a_choice_is_encoded_after_the_question(tmp_path: Path):
    """The tokenizer has a token for each character."""
    tokenizer = write_tokenizer(tmp_path)
    first, second = encode_choices(tokenizer, Question("How?", ("so", "not"), 0))
    assert tokenizer.decode(first.prompt) == tokenizer.decode(second.prompt) == "Question: How?\nAnswer:"
    assert [tokenizer.decode(example.response) for example in (first, second)] == [" so", " not"]


@pytest.mark.parametrize(
    "change",
    [
        {"question": " "},
        {"question": None},
        {"choices": ["one"]},
        {"choices": ["one", "one"]},
        {"choices": ["one", 2]},
        {"answer": 2},
        {"answer": -1},
        {"answer": "two"},
    ],
)
def test_a_line_that_is_no_question_is_named(change: dict[str, object]):
    assert read_question(PLAIN, "here").answer == 1
    with pytest.raises(BadQuestion, match="here: expected a question"):
        read_question(PLAIN | change, "here")


def test_the_shipped_questions_are_sixty_different_ones_whose_answers_stand_anywhere():
    questions = [read_question(json.loads(line), "line") for line in FILE.read_text().splitlines()]
    assert len({question.question for question in questions}) == len(questions) == 60
    assert all(len(question.choices) == 4 for question in questions)
    assert {question.answer for question in questions} == {0, 1, 2, 3}
