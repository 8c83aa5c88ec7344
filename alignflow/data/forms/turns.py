"""Turns of conversations, from chat messages, lists of pairs, transcripts and plain texts.

All names of roles are mapped to ``system``, ``user`` and ``assistant``. A tool call becomes text of the assistant, its
result a user's turn, and the list of tools text of the system message.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignflow.data.forms.faults import (
    CUT_CHAT,
    EMPTY,
    MEDIA,
    NOT_A_TURN,
    NOT_AN_ANSWER,
    ORDER,
    OTHER_PROMPT,
    OTHER_PROMPTS,
    UNKNOWN_ROLE,
    Unusable,
)
from alignflow.data.forms.values import decoded, first_key, text_of
from alignflow.data.rows import Message

Turns = tuple[Message, ...]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
SPEAKER_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
PARTS_OF_MEDIA = re.compile("image|video|audio")

SPEAKERS = {"Human": "Assistant", "User": "Assistant", "USER": "ASSISTANT", "Instruction": "Response"}
"""Names of the two speakers of a transcript, the user first."""
FIRST_MARK = re.compile(rf"\s*(?:System:.*?\n\s*)?(### ?)?({'|'.join(SPEAKERS)}):", re.DOTALL)
WRITTEN_CHAT = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']""")


def is_turn(value: Any) -> bool:
    """Return whether a value is a chat message."""
    return isinstance(value, Mapping) and "replies" not in value and _keys(value) is not None


def _keys(turn: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Return the keys of a message's speaker and text; a tool call may have no text."""
    said, text = first_key(turn, SPEAKER_KEYS), first_key(turn, TEXT_KEYS)
    if said is None or not isinstance(turn[said], str) or not (text or any(key in turn for key in TEXT_KEYS)):
        return None
    return said, text


def prompt_turns(value: Any, name: str) -> Turns:
    """Return a prompt's turns; a text is the user's turn, or a transcript that ends where the assistant goes on."""
    value = _read(value)
    if not isinstance(value, str):
        return turns_of(value, name)
    spoken = transcript(value)
    if spoken is None:
        return ({"role": "user", "content": text_of(value, name)},)
    return checked(spoken if spoken[-1]["content"] else spoken[:-1], name)


def turns_of(value: Any, name: str) -> Turns:
    """Return an answer, or a conversation that ends with it, as turns; an answer may be a plain text."""
    value = _read(value)
    if value is None:
        raise Unusable(f"{name} is missing")
    if isinstance(value, str):
        spoken = transcript(value)
        return ({"role": "assistant", "content": text_of(value, name)},) if spoken is None else checked(spoken, name)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Unusable(f"{name} is neither a text nor chat messages")
    return _merged([part for turn in value for part in _parts(turn)])


def _read(value: Any) -> Any:
    """Return messages that are written as a text as messages; any other text stays a text."""
    found = decoded(value)
    if found is value:
        if isinstance(value, str) and WRITTEN_CHAT.match(value):
            raise Unusable(CUT_CHAT)
        return value
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(map(is_turn, turns)) else value


def _parts(turn: Any) -> list[tuple[str, str]]:
    """Return role and text of a message, or of the two of a pair of question and answer."""
    if isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
        return [(role, text_of(text, "history")) for role, text in zip(("user", "assistant"), turn, strict=True)]
    return [_turn(turn)]


def _merged(parts: Sequence[tuple[str, str]]) -> Turns:
    turns: list[Message] = []
    from_tool = False
    for role, text in parts:
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
    keys = _keys(turn) if isinstance(turn, Mapping) else None
    if keys is None:
        raise Unusable(NOT_A_TURN)
    role = ROLES.get(turn[keys[0]].strip().lower())
    if role is None:
        raise Unusable(UNKNOWN_ROLE)
    text = turn[keys[1]] if keys[1] else None
    if isinstance(text, list):
        text = _joined(text)
    if turn.get("tool_calls"):
        calls = json.dumps(turn["tool_calls"], ensure_ascii=False)
        text = f"{text}\n{calls}" if isinstance(text, str) and text.strip() else calls
    if not isinstance(text, str):
        raise Unusable(NOT_A_TURN)
    if role == "system" and not text.strip():
        return role, ""
    return role, text_of(text, "content")


def _joined(parts: Sequence[Any]) -> str:
    """Return the text of a message of several texts, as some chat services write it."""
    if any(isinstance(part, Mapping) and PARTS_OF_MEDIA.search(str(part.get("type", ""))) for part in parts):
        raise Unusable(MEDIA)
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise Unusable(NOT_A_TURN)
    return "\n".join(part["text"] for part in parts)


def transcript(text: str) -> Turns | None:
    r"""Return the turns of a text of two marked speakers, or None; the last turn may be empty.

    Marks follow an empty line, as in ``\n\nHuman: … \n\nAssistant: …``; if no empty line precedes the assistant's
    mark, they follow any end of a line.
    """
    found = FIRST_MARK.match(text)
    if found is None:
        return None
    hashes, user = found[1] or "", found[2]
    answers = f"{hashes}{SPEAKERS[user]}:"
    gap = "\n\n" if f"\n\n{answers}" in text else "\n"
    if gap + answers not in text:
        return None
    marks = "|".join(map(re.escape, (f"{hashes}{user}", answers[:-1], "System")))
    parts = re.split(rf"(?:^|{gap})({marks}):", text.strip())[1:]
    names = {f"{hashes}{user}": "user", answers[:-1]: "assistant", "System": "system"}
    return tuple(
        {"role": names[speaker], "content": said.strip()} for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )


def checked(turns: Turns, name: str) -> Turns:
    """Return a transcript's turns if none is empty."""
    for turn in turns:
        text_of(turn["content"], name)
    if not turns:
        raise Unusable(EMPTY)
    return turns


def apart(prompt: Turns | None, answers: Sequence[Turns]) -> tuple[Turns, list[str]]:
    """Separate the prompt from the answers, which may be conversations that repeat it."""
    for turns in answers:
        if len(turns) > 1:
            check_order(turns)
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


def check_order(turns: Turns) -> None:
    """Check that user and assistant alternate, user first, after at most one system message."""
    for place, turn in enumerate(_without_system(turns)):
        if turn["role"] != ("user", "assistant")[place % 2]:
            raise Unusable(ORDER)


def with_system(turns: Turns, system: Any, tools: Any) -> Turns:
    """Return a conversation with one system message: the record's system text, its own and the tools, if any."""
    rest = _without_system(turns)
    said = [system, *(turn["content"] for turn in turns[: len(turns) - len(rest)])]
    texts = [text_of(text, "system") for text in said if text is not None and text != ""]
    if tools:
        text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
        texts += [f"Tools:\n{text_of(text, 'tools')}"] if text.strip() else []
    if not texts:
        return rest
    return ({"role": "system", "content": "\n\n".join(dict.fromkeys(texts))}, *rest)
