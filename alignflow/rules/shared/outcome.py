"""Whether a response is right, if the data has an answer."""

import re
from typing import Literal

ABSTENTIONS = re.compile(
    r"\b(i (do not|don'?t|really don'?t) know|i'?m not sure|i am not sure|i (cannot|can'?t|can not) (answer|say|tell)|"
    r"i have no idea|not certain|unknown to me)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def outcome(response: str, answer: str) -> Literal["right", "abstain", "wrong"]:
    """Return whether a response is right, says that it does not know, or is wrong.

    Right: if the answer is a number, it equals the last number of the response; if it is a text, the response contains
    it as whole words, ignoring case and punctuation.
    """
    if _is_right(response, answer):
        return "right"
    return "abstain" if ABSTENTIONS.search(response.replace("\u2019", "'")) else "wrong"


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
