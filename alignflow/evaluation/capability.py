"""What a policy must not forget: accuracy on a small set of multiple-choice questions, and perplexity of good texts.

Both use log-likelihoods. Nothing is sampled, so sampling noise does not hide small regressions.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from alignflow.types import Example

PROMPT = "Question: {question}\nAnswer:"  # plain text without chat template, so that base models can be measured, too


class Question(NamedTuple):
    """A question with its choices."""

    question: str
    choices: tuple[str, ...]
    answer: int
    """Index of the correct choice."""


class BadQuestion(ValueError):
    """A line of the file of questions is not a question."""


def read_question(line: object, place: str) -> Question:
    """Return a line of the file as a question.

    Raises:
        BadQuestion: a key is missing or of the wrong kind; the message names ``place``.
    """
    match line:
        case {"question": str(question), "choices": [str(), str(), *_] as choices, "answer": int(answer)}:
            texts = [choice for choice in choices if isinstance(choice, str) and choice.strip()]
            if question.strip() and len(set(texts)) == len(choices) and 0 <= answer < len(choices):
                return Question(question, tuple(texts), answer)
    raise BadQuestion(
        f"{place}: expected a question, two or more different choices, and the index of the right one as answer"
    )


def encode_choices(tokenizer: Any, question: Question) -> list[Example]:
    """Return the question with each of its choices, as token ids."""
    prompt = tuple(tokenizer.encode(PROMPT.format(question=question.question)))
    return [
        Example(prompt, tuple(tokenizer.encode(f" {choice}", add_special_tokens=False))) for choice in question.choices
    ]


def choice_accuracy(logps: Sequence[float], lengths: Sequence[int], questions: Sequence[Question]) -> float:
    """Return the share of questions whose correct choice has the highest log-likelihood per token.

    argmax_i log π(choice_i | question) / |choice_i|. Brown et al. 2020, arXiv:2005.14165, section 2.4.

    Args:
        logps: log π(choice | question) of every choice of every question, in order, nats.
        lengths: number of tokens of each of these choices.
        questions: the questions, in the same order.
    """
    means = [logp / length for logp, length in zip(logps, lengths, strict=True)]
    right, start = 0, 0
    for question in questions:
        mine = means[start : start + len(question.choices)]
        right += mine.index(max(mine)) == question.answer
        start += len(mine)
    return right / len(questions)


def perplexity(logps: Sequence[float], lengths: Sequence[int]) -> float:
    """Return exp(−Σ log π(text) / Σ tokens).

    Args:
        logps: summed log π of each text's tokens, nats.
        lengths: number of tokens of each text.
    """
    return math.exp(-sum(logps) / sum(lengths))
