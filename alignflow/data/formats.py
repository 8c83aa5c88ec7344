"""Turns records into rows: a table of the known forms of preference data, recognised by their keys.

Texts are stripped, except those of step pairs, whose white space belongs to the steps. All names of roles are mapped
to ``system``, ``user`` and ``assistant``. A tool call becomes text of the assistant, its result a user's turn, and the
list of tools text of the system message.
"""

import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Any, Literal

from alignflow.data.rows import DataError, Message, Row
from alignflow.data.sources import Fault, Record, Source, records

Content = Mapping[str, Any]
Turns = tuple[Message, ...]
Pairs = Literal["all", "best_worst"]

SAMPLE = 100
"""Number of records that are read to recognise a source's form."""

EMPTY = "empty text"
HALF_CHARACTER = "half of a surrogate pair in a text"
NOT_A_TURN = "chat turn without a role or a text"
UNKNOWN_ROLE = "unknown chat role"
ORDER = "chat turns out of order"
PROMPT_END = "prompt does not end with the user's turn"
NOT_AN_ANSWER = "answer is not an assistant's turn"
NOT_A_TRANSCRIPT = "text is not a transcript of Human and Assistant turns"
NO_SHARED_START = "transcripts share no first turn"
OTHER_PROMPTS = "chosen and rejected answer different prompts"
OTHER_PROMPT = "prompt is not in the conversation"
BAD_MARGIN = "margin is not a number of at least 0"
BAD_ANSWER = "answer is neither a text nor a number"
BAD_LABEL = "unknown label"
BAD_SCORE = "score is not a number"
UNLIKE_LENGTHS = "responses and scores differ in number"
ONE_RESPONSE = "fewer than two responses"
ALL_TIED = "all responses score alike"
# and, for the keys named in this file: "KEY is missing", "KEY is not a text", "KEY is not a list",
# "KEY is neither a text nor chat messages"

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
GOOD_LABELS = frozenset({"1", "+1", "true", "up", "good", "thumbs_up"})
BAD_LABELS = frozenset({"0", "-1", "false", "down", "bad", "thumbs_down"})

PROMPT_KEYS = ("prompt", "question", "instruction", "conversations", "messages")
CHAT_KEYS = ("conversations", "messages")
PREFIX_KEYS = ("prefix", "initial_reason_steps")
RESPONSE_KEYS = ("response", "completion")
LIST_KEYS = ("responses", "completions", "answers")
TEXT_KEYS = ("text", "response", "content", "completion", "answer")
SCORE_KEYS = {"score": 1, "scores": 1, "overall_score": 1, "rating": 1, "ratings": 1, "rank": -1, "ranks": -1}
"""Sign of each key after which larger numbers are better: rank 1 is the best."""

SPEAKERS = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class Unusable(ValueError):
    """A record gives no row; the message is the reason, one of a fixed set of texts."""


@dataclass(frozen=True)
class Form:
    """A form of records."""

    keys: str
    """Keys of a record, in words."""
    fits: Callable[[Content], bool]
    """Whether a record has the keys of this form; its values may still be unusable."""
    rows: Callable[[Content], list[Row]]
    """The rows of a record; raises Unusable with the reason."""


def read_rows(source: Source, *, form: str = "auto", pairs: Pairs = "all") -> Iterator[Row | Fault]:
    """Stream the rows of a source; an unusable record becomes a Fault with its number and reason.

    Args:
        source: file, folder or data set.
        form: a name in ``FORMS``, or ``auto`` to recognise it by the keys.
        pairs: of scored responses, all pairs with different scores, or only the best with the worst.

    Raises:
        DataError: the source cannot be read or is of no known form, or no form has that name.
    """
    if form != "auto" and form not in FORMS:
        near = difflib.get_close_matches(form, FORMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: auto, {', '.join(FORMS)}"
        raise DataError(f"{source.path}: no form of data is called {form!r}; {hint}")
    name = form_of(source) if form == "auto" else form
    for record in records(source):
        if isinstance(record, Fault):
            yield record
        elif name is not None:
            yield from _rows(record, FORMS[name], pairs)


def _rows(record: Record, form: Form, pairs: Pairs) -> Iterator[Row | Fault]:
    try:
        rows = form.rows(record.content)
    except Unusable as error:
        yield Fault(record.source, record.number, str(error))
        return
    for row in rows[:1] if pairs == "best_worst" else rows:
        yield replace(row, source=record.source, number=record.number)


def form_of(source: Source) -> str | None:
    """Return the form of a source, from its first usable records; None if all rows are broken.

    Raises:
        DataError: the source cannot be read, is empty, or is of no known form.
    """
    found = records(source)
    first = next(found, None)
    if first is None:
        raise DataError(f"{source.path}: no row in it; write a row a line, e.g. with prompt, chosen and rejected")
    usable = (r.content for r in _chain(first, found) if isinstance(r, Record))
    sample = list(islice(usable, SAMPLE))
    return detect(sample, source=source.path) if sample else None


def _chain(first: Record | Fault, rest: Iterator[Record | Fault]) -> Iterator[Record | Fault]:
    yield first
    yield from rest


def detect(sample: Sequence[Content], *, source: str) -> str:
    """Return the form of most records; each record counts for the first form of the table that fits it.

    Raises:
        DataError: no record is of a known form; the message names the keys found and the forms.
    """
    votes = Counter(name for name in (_fitting(content) for content in sample) if name)
    if votes:
        return max(FORMS, key=lambda name: votes[name])  # for equal counts, the first of the table
    keys = list(dict.fromkeys(str(key)[:40] for content in sample for key in content))
    if {"completions", "labels"} <= set(keys):
        raise DataError(
            f"{source}: rows of completions with labels, one a step, hold rejected steps only (the first false label); "
            "a step pair needs prompt, prefix, chosen and rejected"
        )
    forms = "".join(f"\n  {name}: {form.keys}" for name, form in FORMS.items())
    raise DataError(
        f"{source}: rows of no known form; keys found: {', '.join(keys[:20]) or 'none'}; rename them to those of a "
        f"form (a CSV file names its columns in the first row):{forms}"
    )


def _fitting(content: Content) -> str | None:
    return next((name for name, form in FORMS.items() if form.fits(content)), None)


def mix(sources: Sequence[Source], *, seed: int, form: str = "auto", pairs: Pairs = "all") -> Iterator[Row | Fault]:
    """Stream several sources one after the other, each subsampled by its weight.

    A source of weight w keeps a row with probability w / (greatest weight), by a hash of the seed and the row's prompt.
    So the source with the greatest weight is complete, all rows of a prompt are kept or left out together, and the
    choice does not depend on other rows or their order. A Fault is kept with the same probability, by a hash of its
    number, so that the share of faults does not change.

    Raises:
        DataError: there is no source, a weight is not a number above 0, or a source cannot be read.
    """
    for source in sources:
        if not 0 < source.weight < math.inf:
            raise DataError(f"{source.path}: weight {source.weight} is not a number above 0")
    if not sources:
        raise DataError("no source of data; name at least one file, folder or data set")
    most = max(source.weight for source in sources)
    for source in sources:
        keep = source.weight / most
        for item in read_rows(source, form=form, pairs=pairs):
            if keep == 1 or _share(item, seed) < keep:
                yield item


def _share(item: Row | Fault, seed: int) -> float:
    key = item.prompt_id if isinstance(item, Row) else f"{item.source}:{item.number}"
    # "mix" makes this hash independent of the one that splits prompts: subsampling must not change the split
    return int.from_bytes(hashlib.sha256(f"mix:{seed}:{key}".encode()).digest()[:8], "big") / 2**64


# The forms -------------------------------------------------------------------------------------------------------


def _preference(content: Content) -> list[Row]:
    prompt, prefix = _prompt(content, PROMPT_KEYS), _first(content, PREFIX_KEYS)
    return [_pair(content, prompt) if prefix is None else _step_pair(content, prompt, prefix)]


def _sharegpt(content: Content) -> list[Row]:
    prompt = _prompt(content, CHAT_KEYS)
    if prompt is None:
        raise Unusable("conversations is missing")
    return [_pair(content, prompt)]


def _transcripts(content: Content) -> list[Row]:
    chosen, rejected = (_transcript(content, key) for key in ("chosen", "rejected"))
    if chosen[0] != rejected[0]:
        raise Unusable(NO_SHARED_START)
    prompt, texts = _apart(None, [chosen, rejected])
    return [_row(content, prompt, texts[0], texts[1], _margin(content))]


def _ranked(content: Content) -> list[Row]:
    """Return all pairs of responses with different scores, the largest margin first."""
    prompt = _prompt(content, PROMPT_KEYS)
    if prompt is None:
        raise Unusable("prompt is missing")
    scored = sorted(_scored(content), key=lambda response: -response[1])
    if len(scored) < 2:
        raise Unusable(ONE_RESPONSE)
    rows = [
        _row(content, prompt, better, worse, high - low)
        for (better, high), (worse, low) in combinations(scored, 2)
        if high > low
    ]
    if not rows:
        raise Unusable(ALL_TIED)
    return sorted(rows, key=lambda row: -row.margin)


def _thumbs(content: Content) -> list[Row]:
    key = _first(content, RESPONSE_KEYS) or "response"
    prompt, (text,) = _apart(_prompt(content, PROMPT_KEYS), [_turns(content.get(key), key)])
    good = _label(content.get("label"))
    return [_row(content, prompt, text if good else None, None if good else text, 0.0)]


def _prompt_answer(content: Content) -> list[Row]:
    (row,) = _prompts(content)
    if row.answer is None:
        raise Unusable("answer is missing")
    solution = content["answer"].strip() if isinstance(content["answer"], str) else row.answer
    return [replace(row, chosen=solution) if row.chosen is None and len(solution) > len(row.answer) else row]


def _prompts(content: Content) -> list[Row]:
    prompt = _prompt(content, PROMPT_KEYS)
    keys = [key for key in ("chosen", "rejected") if content.get(key) is not None]
    if not keys and prompt is None:
        raise Unusable("prompt is missing")
    prompt, texts = _apart(prompt, [_turns(content[key], key) for key in keys])
    judged = dict(zip(keys, texts, strict=True))
    return [_row(content, prompt, judged.get("chosen"), judged.get("rejected"), _margin(content))]


def _has_pair(content: Content) -> bool:
    return "chosen" in content and "rejected" in content


def _is_step_pair(content: Content) -> bool:
    return _has_pair(content) and any(key in content for key in PREFIX_KEYS)


def _is_transcripts(content: Content) -> bool:
    texts = [content.get(key) for key in ("chosen", "rejected")]
    spoken = all(isinstance(text, str) and text.lstrip().startswith("Human:") for text in texts)
    return spoken and _first(content, PROMPT_KEYS) is None


def _is_sharegpt(content: Content) -> bool:
    return _has_pair(content) and ("conversations" in content or ("messages" in content and "prompt" not in content))


def _is_ranked(content: Content) -> bool:
    key = _first(content, LIST_KEYS)
    if key is None or not isinstance(content[key], list) or _first(content, PROMPT_KEYS) is None:
        return False
    return _first(content, tuple(SCORE_KEYS)) is not None or any(isinstance(r, Mapping) for r in content[key])


def _is_thumbs(content: Content) -> bool:
    return "label" in content and any(key in content for key in RESPONSE_KEYS)


def _is_prompt_answer(content: Content) -> bool:
    return _is_prompts(content) and "answer" in content


def _is_prompts(content: Content) -> bool:
    # a response without a judgement must not be ignored silently
    return any(key in content for key in PROMPT_KEYS) and _first(content, RESPONSE_KEYS + LIST_KEYS) is None


FORMS: dict[str, Form] = {
    "transcripts": Form(
        'chosen and rejected, two whole transcripts "\\n\\nHuman: … \\n\\nAssistant: …" that differ in the last answer',
        _is_transcripts,
        _transcripts,
    ),
    "step_pair": Form(
        "prompt, prefix (the answer so far; or initial_reason_steps), chosen, rejected: two next steps",
        _is_step_pair,
        _preference,
    ),
    "sharegpt": Form("conversations (from, value), chosen, rejected", _is_sharegpt, _sharegpt),
    "preference": Form("prompt, chosen, rejected: each a text or chat messages", _has_pair, _preference),
    "ranked": Form(
        "prompt, responses (texts with scores or ranks beside them, or objects with text and score or rank)",
        _is_ranked,
        _ranked,
    ),
    "thumbs": Form("prompt, response (or completion), label (good or bad)", _is_thumbs, _thumbs),
    "prompt_answer": Form("prompt (or question), answer", _is_prompt_answer, _prompt_answer),
    "prompts": Form("prompt (or question): a text or chat messages, perhaps chosen or rejected", _is_prompts, _prompts),
}
"""All accepted forms; if a record fits several, the first one is used."""


# Helpers of the forms ----------------------------------------------------------------------------------------------


def _pair(content: Content, prompt: Turns | None) -> Row:
    prompt, (chosen, rejected) = _apart(prompt, [_turns(content.get(key), key) for key in ("chosen", "rejected")])
    return _row(content, prompt, chosen, rejected, _margin(content))


def _step_pair(content: Content, prompt: Turns | None, prefix: str) -> Row:
    """Return two next steps after a prefix, with their white space: it says where a step begins."""
    if prompt is None:
        raise Unusable("prompt is missing")
    for key in ("chosen", "rejected", *([prefix] if content[prefix] != "" else [])):
        _text(content.get(key), key)
    row = _row(content, prompt, content["chosen"], content["rejected"], _margin(content))
    return replace(row, prefix=content[prefix])


def _row(content: Content, prompt: Turns, chosen: str | None, rejected: str | None, margin: float) -> Row:
    messages = _with_system(content, prompt)
    _check_order(messages)
    if messages[-1]["role"] != "user":
        raise Unusable(PROMPT_END)
    return Row(messages, chosen, rejected, margin, _right_answer(content.get("answer")))


def _first(content: Content, keys: Iterable[str]) -> str | None:
    return next((key for key in keys if content.get(key) is not None), None)


def _prompt(content: Content, keys: Sequence[str]) -> Turns | None:
    """Return the prompt's turns from the first of the keys that exists, or None."""
    key = _first(content, keys)
    if key is None:
        return None
    value, more = content[key], content.get("input")
    if key == "instruction" and isinstance(value, str) and isinstance(more, str):
        value = f"{value}\n{more}"  # the second part of an instruction in Alpaca's form
    if isinstance(value, str):
        return ({"role": "user", "content": _text(value, key)},)
    if not isinstance(value, list):
        raise Unusable(f"{key} is neither a text nor chat messages")
    return _turns(value, key)


def _turns(value: Any, key: str) -> Turns:
    """Return an answer, or a conversation that ends with it, as turns; an answer may be a plain text."""
    if value is None:
        raise Unusable(f"{key} is missing")
    if isinstance(value, str):
        return ({"role": "assistant", "content": _text(value, key)},)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Unusable(f"{key} is neither a text nor chat messages")
    turns: list[Message] = []
    from_tool = False
    for role, text in map(_turn, value):
        if role == "tool":
            # results of several calls in one turn are one turn, too
            before = f"{turns.pop()['content']}\n\n" if from_tool else ""
            turns.append({"role": "user", "content": f"{before}Tool result:\n{text}"})
        elif text:
            turns.append({"role": role, "content": text})
        from_tool = role == "tool"
    if not turns:
        raise Unusable(EMPTY)
    return tuple(turns)


def _turn(turn: Any) -> tuple[str, str]:
    """Return role and text of a chat message; only a system's text may be empty."""
    if not isinstance(turn, Mapping):
        raise Unusable(NOT_A_TURN)
    said, value = _first(turn, ("role", "from")), _first(turn, ("content", "value"))
    if said is None or not isinstance(turn[said], str):
        raise Unusable(NOT_A_TURN)
    role = ROLES.get(turn[said].strip().lower())
    if role is None:
        raise Unusable(UNKNOWN_ROLE)
    parts = turn[value] if value else None
    if isinstance(parts, list):  # a message of several texts, as some chat services write it
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
            raise Unusable(NOT_A_TURN)
        parts = "\n".join(part["text"] for part in parts)
    if turn.get("tool_calls"):
        calls = json.dumps(turn["tool_calls"], ensure_ascii=False)
        parts = f"{parts}\n{calls}" if isinstance(parts, str) and parts.strip() else calls
    if not isinstance(parts, str):
        raise Unusable(NOT_A_TURN)
    if role == "system" and not parts.strip():
        return role, ""
    return role, _text(parts, "content")


def _text(value: Any, key: str) -> str:
    """Return a stripped text."""
    if value is None:
        raise Unusable(f"{key} is missing")
    if not isinstance(value, str):
        raise Unusable(f"{key} is not a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unusable(HALF_CHARACTER) from None
    text = value.strip()
    if not text:
        raise Unusable(EMPTY)
    return text


def _transcript(content: Content, key: str) -> Turns:
    before, *parts = SPEAKERS.split(_text(content.get(key), key))
    if before or not parts:
        raise Unusable(NOT_A_TRANSCRIPT)
    return tuple(
        {"role": "user" if speaker == "Human" else "assistant", "content": _text(text, key)}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    )


def _apart(prompt: Turns | None, answers: Sequence[Turns]) -> tuple[Turns, list[str]]:
    """Separate the prompt from the answers, which may be conversations that repeat it."""
    for turns in answers:
        if len(turns) > 1:
            _check_order(turns)
        if turns[-1]["role"] != "assistant":
            raise Unusable(NOT_AN_ANSWER)
    told = [turns[:-1] for turns in answers if len(turns) > 1]
    if any(turns != told[0] for turns in told):
        raise Unusable(OTHER_PROMPTS)
    if told:
        prompt = told[0] if prompt is None else _within(prompt, told[0])
    if prompt is None:
        raise Unusable("prompt is missing")
    return prompt, [turns[-1]["content"] for turns in answers]


def _within(prompt: Turns, conversation: Turns) -> Turns:
    """Return the conversation before the answers; the prompt must be its beginning or its end."""
    said, whole = _without_system(prompt), _without_system(conversation)
    if not said or said not in (whole[: len(said)], whole[-len(said) :]):
        raise Unusable(OTHER_PROMPT)
    return conversation if len(whole) < len(conversation) else prompt[: len(prompt) - len(said)] + whole


def _without_system(turns: Turns) -> Turns:
    return turns[1:] if turns and turns[0]["role"] == "system" else turns


def _check_order(turns: Turns) -> None:
    """Check that user and assistant alternate, user first, after at most one system message."""
    for place, turn in enumerate(_without_system(turns)):
        if turn["role"] != ("user", "assistant")[place % 2]:
            raise Unusable(ORDER)


def _with_system(content: Content, turns: Turns) -> Turns:
    """Return a conversation with one system message: the record's system text, its own and the tools, if any."""
    rest = _without_system(turns)
    said = [content.get("system"), *(turn["content"] for turn in turns[: len(turns) - len(rest)])]
    texts = [_text(text, "system") for text in said if text is not None and text != ""]
    tools = content.get("tools")
    if tools:
        text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        texts += [f"Tools:\n{text.strip()}"] if text.strip() else []
    if not texts:
        return rest
    return ({"role": "system", "content": "\n\n".join(dict.fromkeys(texts))}, *rest)


def _margin(content: Content) -> float:
    """Return the margin, or the difference of the two scores, or 0."""
    value = content.get("margin")
    scores = [content.get(key) for key in ("score_chosen", "score_rejected")]
    if value is None and None in scores:
        return 0.0
    margin = _number(value, BAD_MARGIN) if value is not None else _difference(scores)
    if margin < 0:
        raise Unusable(BAD_MARGIN)
    return margin


def _difference(scores: Sequence[Any]) -> float:
    chosen, rejected = (_number(score, BAD_MARGIN) for score in scores)
    return chosen - rejected


def _number(value: Any, reason: str) -> float:
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


def _right_answer(value: Any) -> str | None:
    """Return the correct answer as a text; of a worked solution, the part after the last ``####``."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise Unusable(BAD_ANSWER)
    if value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unusable(BAD_ANSWER)
        value = int(value) if value.is_integer() else value  # a column of integers with gaps is read as floats
    text = str(value)
    return _text(text.rpartition("####")[2], "answer") if text.strip() else None


def _label(value: Any) -> bool:
    if value is None:
        raise Unusable("label is missing")
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
    if text not in GOOD_LABELS | BAD_LABELS:
        raise Unusable(BAD_LABEL)
    return text in GOOD_LABELS


def _scored(content: Content) -> list[tuple[str, float]]:
    """Return the responses with numbers; larger numbers are better."""
    key = _first(content, LIST_KEYS)
    if key is None:
        raise Unusable("responses is missing")
    responses = content[key]
    if not isinstance(responses, list):
        raise Unusable(f"{key} is not a list")
    beside = _first(content, SCORE_KEYS)
    if beside is not None:
        scores = content[beside]
        if not isinstance(scores, list):
            raise Unusable(f"{beside} is not a list")
        if len(scores) != len(responses):
            raise Unusable(UNLIKE_LENGTHS)
        return [
            (_response(r), SCORE_KEYS[beside] * _number(s, BAD_SCORE)) for r, s in zip(responses, scores, strict=True)
        ]
    return [(_response(r), _own_score(r)) for r in responses]


def _response(response: Any) -> str:
    if isinstance(response, Mapping):
        key = _first(response, TEXT_KEYS) or "text"
        return _text(response.get(key), key)
    return _text(response, "response")


def _own_score(response: Any) -> float:
    key = _first(response, SCORE_KEYS) if isinstance(response, Mapping) else None
    if key is None:
        raise Unusable("score is missing")
    return SCORE_KEYS[key] * _number(response[key], BAD_SCORE)
