"""What kind of values a column holds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum, auto
from typing import Any

from alignflow.data.forms.faults import Unusable
from alignflow.data.forms.turns import ROLES, is_turn, transcript
from alignflow.data.forms.values import decoded, number_of

FEW_WORDS = 3
"""A text of at most so many words may be a name, a label or a category."""


class ValueKind(StrEnum):
    """Kind of a value; a text that spells a list is both."""

    TEXT = auto()
    WORD = auto()  # a text of few words
    SCRIPT = auto()  # a transcript that ends with the assistant's answer
    TURNS = auto()  # chat messages
    CHAT = auto()  # chat messages from the user's to the assistant's last one
    ROUNDS = auto()  # a list of [question, answer]
    TREE = auto()  # a message with its replies
    TEXTS = auto()  # a list of texts or conversations
    NUMBER = auto()
    NUMBERS = auto()
    MARK = auto()  # true or false
    OBJECT = auto()
    OBJECTS = auto()
    MEDIA = auto()


def is_empty(value: Any) -> bool:
    """Return whether a value says nothing."""
    return value is None or (isinstance(value, str | list | Mapping) and not value)


def kinds_of(values: Iterable[Any]) -> frozenset[ValueKind]:
    """Return the kinds of most of the values that are not empty."""
    found = [kinds(value) for value in values if not is_empty(value)]
    counts = Counter(kind for each in found for kind in each)
    return frozenset(kind for kind, count in counts.items() if 2 * count >= len(found))


def kinds(value: Any) -> set[ValueKind]:
    """Return the kinds of a value."""
    if isinstance(value, bool):
        return {ValueKind.MARK}
    if isinstance(value, int | float):
        return {ValueKind.NUMBER}
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bytes):
        return {ValueKind.MEDIA}
    if isinstance(value, Mapping):
        return _of_object(value)
    return _of_list(value) if isinstance(value, list) else set()


def _of_text(text: str) -> set[ValueKind]:
    found = {ValueKind.TEXT}
    value = decoded(text)
    if value is not text:
        found |= kinds(value)
    if words(text) <= FEW_WORDS:
        found.add(ValueKind.WORD)
        if text.strip().lower() in {"true", "false"}:
            found.add(ValueKind.MARK)
        try:
            number_of(text, "")
        except Unusable:
            pass
        else:
            found.add(ValueKind.NUMBER)
    spoken = transcript(text)
    if spoken and spoken[-1]["role"] == "assistant" and spoken[-1]["content"]:
        found.add(ValueKind.SCRIPT)
    return found


def words(text: str) -> int:
    """Return about how many words a text has, in scripts without spaces too."""
    return max(len(text.split()), sum(not character.isascii() for character in text) // 2)


def _of_object(value: Mapping[str, Any]) -> set[ValueKind]:
    if isinstance(value.get("replies"), list):
        return {ValueKind.TREE}
    if is_turn(value):
        return {ValueKind.TURNS, ValueKind.OBJECT}
    return {ValueKind.MEDIA if isinstance(value.get("bytes"), bytes) else ValueKind.OBJECT}


def _of_list(value: Sequence[Any]) -> set[ValueKind]:
    told = [one for one in value if one is not None]
    if all(isinstance(one, Mapping) for one in told) and told:
        return _of_objects(told)
    if all(isinstance(one, list | tuple) for one in told) and told:
        rounds = all(len(one) == 2 and all(isinstance(text, str) for text in one) for one in told)
        chats = all(is_turn(turn) for one in told for turn in one)
        return {ValueKind.ROUNDS} if rounds else {ValueKind.TEXTS} if chats else set()
    if told and all(isinstance(one, str) for one in told):
        return {ValueKind.TEXTS}
    return {ValueKind.NUMBERS} if told and all(isinstance(one, bool | int | float) for one in told) else set()


def _of_objects(value: Sequence[Mapping[str, Any]]) -> set[ValueKind]:
    if all(map(is_turn, value)):
        said = [ROLES.get(str(turn.get("role") or turn.get("from") or turn.get("speaker")).lower()) for turn in value]
        return {ValueKind.CHAT if said[-1] == "assistant" and "user" in said else ValueKind.TURNS, ValueKind.OBJECTS}
    return {ValueKind.MEDIA} if all(isinstance(one.get("bytes"), bytes) for one in value) else {ValueKind.OBJECTS}
