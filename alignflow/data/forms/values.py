"""Single values of a record: texts, numbers, labels, correct answers, and lists that are written as text."""

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from alignflow.data.forms.faults import (
    BAD_ANSWER,
    BAD_LABEL,
    BAD_LABELS,
    EMPTY,
    GOOD_LABELS,
    HALF_CHARACTER,
    Unusable,
)

PATH = re.compile(r"(\[\])?\.")
ARRAY = re.compile(r"array\((\[.*?\])(?:, dtype=\w+)?\)", re.DOTALL)  # as NumPy writes it
BETWEEN_DICTS = re.compile(r"\}\s+\{")  # NumPy writes no comma there
BOXED = re.compile(r"\\boxed\s*\{")
FORMULA = re.compile(r"(?<!\\)\$([^$]+)\$")


def text_of(value: Any, name: str) -> str:
    """Return a stripped text."""
    if value is None:
        raise Unusable(f"{name} is missing")
    if not isinstance(value, str):
        raise Unusable(f"{name} is not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unusable(HALF_CHARACTER) from None
    text = value.strip()
    if not text:
        raise Unusable(EMPTY)
    return text


def number_of(value: Any, reason: str) -> float:
    """Return a finite number; the value may be its text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unusable(reason)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise Unusable(reason) from None
    if not math.isfinite(number):
        raise Unusable(reason)
    return number


def plain(value: Any) -> str:
    """Return a number, mark or word as a lower-case text; a whole float has no point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().lower()


def label_of(value: Any, name: str) -> bool:
    """Return whether a label says good."""
    if value is None:
        raise Unusable(f"{name} is missing")
    text = plain(value).removesuffix(".0")
    if text in GOOD_LABELS:
        return True
    if text in BAD_LABELS:
        return False
    raise Unusable(BAD_LABEL)


def right_answer(value: Any) -> str | None:
    """Return the correct answer as a text; of a worked solution, what it marks as its result."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Unusable(BAD_ANSWER)
    if value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unusable(BAD_ANSWER)
        value = int(value) if value.is_integer() else value  # a column of integers with gaps is read as floats
    text = str(value)
    return text_of(_result(text), "answer") if text.strip() else None


def _result(text: str) -> str:
    r"""Return what follows the last ``####``, or is in the last ``\boxed{}``, or is the only formula of a sentence."""
    if "####" in text:
        return text.rpartition("####")[2]
    boxes = [text[found.end() :] for found in BOXED.finditer(text)]
    if boxes:
        return _until_closed(boxes[-1])
    formulas = FORMULA.findall(text)
    return formulas[0] if len(formulas) == 1 else text


def _until_closed(text: str) -> str:
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:place]
    return text


def decoded(value: Any) -> Any:
    """Return the list or object that a text holds as JSON, or as Python or NumPy prints it; else the value itself."""
    if not isinstance(value, str) or value.lstrip()[:1] not in {"[", "{"}:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        pass
    if "'" not in value and "None" not in value:
        return value
    for text in (value, BETWEEN_DICTS.sub("}, {", ARRAY.sub(r"\1", value))):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return value


def at(content: Mapping[str, Any], path: str) -> Any:
    """Return the value of a dotted path; ``list[].key`` gives the values of all elements, ``.`` the record itself."""
    if path == ".":
        return content
    if path in content:
        return content[path]
    head, dot, rest = path.partition(".")
    value = decoded(content.get(head.removesuffix("[]")))
    if not dot:
        return value
    if head.endswith("[]"):
        return (
            [at(one, rest) if isinstance(one, Mapping) else None for one in value] if isinstance(value, list) else None
        )
    return at(value, rest) if isinstance(value, Mapping) else None


def first_key(content: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return the first key with a value."""
    return next((key for key in keys if content.get(key) is not None), None)
