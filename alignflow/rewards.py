"""Rule rewards: plain functions, named in params.yaml with their weight and their numbers.

A rule takes a prompt, a response and the data's answer to the prompt (None where there is none) and returns a number,
or None where it does not apply. Its own numbers are keyword-only arguments without defaults: params.yaml holds them.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

Rule = Callable[..., float | None]
"""(prompt, response, answer, *, numbers) -> reward, or None where the rule does not apply."""

FILLERS = re.compile(
    r"^\W*(certainly|sure|of course|absolutely|great question|that'?s a (great|good)|thank you|i'?d be happy|as an ai|"
    r"there are (many|several|a few|various)|it'?s important|when it comes to|in order to|let'?s|well,)",
    re.IGNORECASE,
)
HEDGES = re.compile(
    r"\b(it depends|as an ai|i cannot|i can'?t|i'?m not sure|i am not sure|hard to say|consult)\b",
    re.IGNORECASE,
)
LIST_MARKS = re.compile(r"(^|\n)\s*([-*•]|\d+[.)])\s|\*\*|#")
STOP_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "best",
        "better",
        "but",
        "by",
        "can",
        "could",
        "do",
        "does",
        "for",
        "from",
        "get",
        "give",
        "good",
        "have",
        "how",
        "i",
        "in",
        "is",
        "it",
        "its",
        "make",
        "me",
        "most",
        "my",
        "of",
        "on",
        "one",
        "or",
        "should",
        "simple",
        "simply",
        "so",
        "some",
        "suggest",
        "than",
        "that",
        "the",
        "them",
        "there",
        "they",
        "this",
        "tip",
        "to",
        "use",
        "using",
        "was",
        "what",
        "when",
        "where",
        "which",
        "why",
        "will",
        "with",
        "without",
        "would",
        "you",
        "your",
        "explain",
        "tell",
        "name",
        "keep",
    ]
)


ABSTENTIONS = re.compile(
    r"\b(i (do not|don'?t|really don'?t) know|i'?m not sure|i am not sure|i (cannot|can'?t|can not) (answer|say|tell)|"
    r"i have no idea|not certain|unknown to me)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def concise_answer(prompt: str, response: str, answer: str | None) -> float:  # noqa: ARG001
    """Return how well a response is one or two plain, complete, concrete sentences on the subject, in [0, 1].

    Six equal parts: it ends like a sentence; 6 to 40 words; at most two sentences; no filler opening and no hedge;
    no list; no phrase repeated. The whole is halved when it shares no word of substance with the prompt.
    """
    text = response.strip()
    words = re.findall(r"[\w']+", text.lower())
    if not words:
        return 0.0
    sentences = re.findall(r"[.!?]+(?:\s|$)", text)
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    parts = [
        text[-1] in ".!?" or text[-2:] in {'."', '!"', '?"', ".)"},
        6 <= len(words) <= 40,
        len(sentences) <= 2,
        not FILLERS.search(text) and not HEDGES.search(text),
        not LIST_MARKS.search(text),
        len(set(trigrams)) == len(trigrams),
    ]
    subject = {_stem(w) for w in re.findall(r"[\w']+", prompt.lower())} - STOP_WORDS
    on_subject = bool(subject & {_stem(w) for w in words}) or not subject
    return sum(parts) / len(parts) * (1.0 if on_subject else 0.5)


def brevity(prompt: str, response: str, answer: str | None) -> float:  # noqa: ARG001
    """Return 1 for an answer of up to 30 words, falling to 0 at 90."""
    return min(1.0, max(0.0, (90 - len(response.split())) / 60))


def right_abstain_wrong(
    prompt: str,  # noqa: ARG001
    response: str,
    answer: str | None,
    *,
    right: float,
    abstain: float,
    wrong: float,
) -> float | None:
    """Reward a right answer highly and "I don't know" a little, and punish a wrong answer: against made-up answers.

    Applies where the data has an answer; ``outcome`` says what counts as right.
    """
    if answer is None:
        return None
    return {"right": right, "abstain": abstain, "wrong": wrong}[outcome(response, answer)]


def outcome(response: str, answer: str) -> Literal["right", "abstain", "wrong"]:
    """Return whether a response is right, says that it does not know, or is wrong.

    Right: for a number, the last number of the response equals it; for a text, it stands in the response as whole
    words, whatever the case and punctuation.
    """
    if _is_right(response, answer):
        return "right"
    return "abstain" if ABSTENTIONS.search(response.replace("\u2019", "'")) else "wrong"


RULES: Mapping[str, Rule] = {
    "concise_answer": concise_answer,
    "brevity": brevity,
    "right_abstain_wrong": right_abstain_wrong,
}


class RuleFailed(ValueError):
    """A rule raised, or gave something that is not a finite number."""


def numbers_of(name: str) -> list[str]:
    """Return the names of the numbers that a rule takes from params.yaml, besides its weight."""
    parameters = inspect.signature(RULES[name]).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def apply_rule(name: str, prompt: str, response: str, answer: str | None, numbers: Mapping[str, float]) -> float | None:
    """Return what a rule gives a response, or None where it does not apply.

    Args:
        name: of the rule.
        prompt: as text.
        response: as text.
        answer: of the data, if it has one.
        numbers: the rule's own.

    Raises:
        RuleFailed: the rule raised or its result is not a finite number; the message names rule and prompt.
    """
    try:
        result = RULES[name](prompt, response, answer, **numbers)
    except Exception as error:
        raise RuleFailed(
            f"rule {name} raised {type(error).__name__} ({error}) on a response to {prompt!r}; "
            "mend it in alignflow/rewards.py"
        ) from error
    if result is None:
        return None
    if not isinstance(result, int | float) or not math.isfinite(result):
        raise RuleFailed(
            f"rule {name} gave {result!r} for a response to {prompt!r}; it must be a finite number, or None where it "
            "does not apply"
        )
    return float(result)


def _is_right(response: str, answer: str) -> bool:
    wanted = NUMBER.fullmatch(answer.strip())
    if wanted:
        found = NUMBER.findall(response)
        return bool(found) and _number(found[-1]) == _number(wanted[0])
    return f" {_words(answer)} " in f" {_words(response)} "


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _stem(word: str) -> str:
    """Cut plural and verb endings, so that "stars" meets "star"."""
    return re.sub(r"(ing|ed|es|s)$", "", word) if len(word) > 4 else word
