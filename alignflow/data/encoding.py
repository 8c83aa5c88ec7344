"""Encodes conversations and answers separately, so that the boundary between their token ids is exact.

Control tokens come only from the chat template: a text that spells one is cut inside the spelling before tokenisation,
so that no piece contains it. What the template writes around an answer is found by rendering a small conversation.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import Any

from alignflow.data.rows import DataError, Message

QUESTION, ANSWER, ORDER = "Is this a question?", "Certainly it is.", "Answer every question."
ASKED, ANSWERED = Message(role="user", content=QUESTION), Message(role="assistant", content=ANSWER)
PRIVATE = [chr(i) for i in range(0xE000, 0xF900)]  # characters without a meaning in Unicode


class UnsupportedTemplate(ValueError):
    """The chat template cannot be used to train on answers; the message says why."""


class RefusedConversation(DataError):
    """The chat template does not accept a conversation."""


@dataclass(frozen=True)
class _Template:
    """What a chat template adds to every conversation."""

    control: re.Pattern[str]
    """Matches the spelling of any control token."""
    anchor: str
    """A control token to put before a text that is not a beginning; it does not absorb white space."""
    lead: str
    """White space before an answer that is not part of the generation prompt, e.g. after ``[/INST]``."""
    trail: str
    """White space between an answer and its end."""
    end: int
    """The token that ends an assistant's turn."""
    takes_system: bool
    unlike: tuple[str, str] | None
    """The generation prompt and the text before a stored answer, from their first difference; None if they agree."""


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return a conversation in the chat template, up to where the assistant's answer starts.

    If no text spells a control token, these are the ids of ``apply_chat_template``. A system message that the template
    does not accept is put before the first user message.

    Raises:
        RefusedConversation: the template does not accept these roles in this order.
        UnsupportedTemplate: the template cannot be used at all.
    """
    (prompt,) = encode_prompts(tokenizer, [messages])
    if isinstance(prompt, RefusedConversation):
        raise prompt
    return prompt


def encode_prompts(
    tokenizer: Any, conversations: Sequence[Sequence[Message]]
) -> list[tuple[int, ...] | RefusedConversation]:
    """Return each conversation as ``encode_prompt`` does, or why it is refused; one call is faster than many."""
    template = _read(tokenizer)
    written = [_written(tokenizer, template, messages) for messages in conversations]
    ids = _tokenize(tokenizer, [text for part in written if isinstance(part, list) for text in part])
    return [
        part if isinstance(part, RefusedConversation) else (*next(ids), *_continued(ids, len(part) - 1))
        for part in written
    ]


def encode_response(tokenizer: Any, response: str) -> tuple[int, ...]:
    """Return an answer's tokens as they follow the generation prompt, with the one token that ends the turn."""
    return encode_responses(tokenizer, [response])[0]


def encode_responses(tokenizer: Any, responses: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens of answers as ``encode_response`` does; one call is faster than many."""
    template = _read(tokenizer)
    pieces = [_pieces(template.control, template.lead + text + template.trail) for text in responses]
    ids = _tokenize(tokenizer, [template.anchor + piece for answer in pieces for piece in answer])
    return [(*_continued(ids, len(answer)), template.end) for answer in pieces]


def encode_steps(tokenizer: Any, steps: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens of the first parts of an answer, each encoded apart, without the end of the turn."""
    template = _read(tokenizer)
    pieces = [_pieces(template.control, text) for text in (template.lead + steps[0], *steps[1:])]
    ids = _tokenize(tokenizer, [template.anchor + piece for step in pieces for piece in step])
    return [tuple(_continued(ids, len(step))) for step in pieces]


def end_of_turn(tokenizer: Any) -> int:
    """Return the token that the chat template writes after an answer, e.g. ``<|eot_id|>``, or end-of-sequence."""
    return _read(tokenizer).end


def control_tokens_in(tokenizer: Any, text: str) -> list[str]:
    """Return the control tokens that a text spells, in order; they are encoded as ordinary text."""
    return _read(tokenizer).control.findall(text)


def template_notes(tokenizer: Any) -> list[str]:
    """Return what is unusual about this chat template, one sentence each; usually nothing.

    Raises:
        UnsupportedTemplate: the template cannot be used at all.
    """
    template = _read(tokenizer)
    notes = []
    if not template.takes_system:
        notes.append("the chat template takes no system message; its text is put before the first user message")
    if template.unlike is not None:
        asking, stored = template.unlike
        notes.append(
            f"the chat template asks for an answer with {asking!r} and writes a past one after {stored!r}; answers are "
            "trained as they are sampled, right after the generation prompt"
        )
    elif not _joins_exactly(tokenizer):
        notes.append(
            "the tokenizer joins characters across the start of an answer; prompt and answer are tokenised apart, as "
            "they are when sampling"
        )
    if "strftime_now" in tokenizer.get_chat_template():
        notes.append("the chat template can write today's date; a run on another day may then see other prompts")
    return notes


def _pieces(control: re.Pattern[str], text: str) -> list[str]:
    """Cut a text after the first character of every spelling of a control token, also of overlapping ones."""
    if not control.search(text):
        return [text]
    cuts = [i + 1 for i in range(len(text)) if control.match(text, i)]
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


def _written(tokenizer: Any, template: _Template, messages: Sequence[Message]) -> list[str] | RefusedConversation:
    """Return a conversation in the chat template, cut inside the control tokens that its texts spell.

    Each piece after a cut starts with the anchor, because some tokenizers put a space before the start of a text.
    """
    if not template.takes_system:
        messages = _system_in_user(messages)
    texts = "".join(message["content"] for message in messages)
    cut = next(mark for mark in PRIVATE if mark not in texts)
    marked = [Message(role=m["role"], content=cut.join(_pieces(template.control, m["content"]))) for m in messages]
    try:
        first, *rest = _render(tokenizer, marked, answering=True).split(cut)
    except RefusedConversation as error:
        return error
    return [first, *(template.anchor + piece for piece in rest)]


def _tokenize(tokenizer: Any, texts: list[str]) -> Iterator[list[int]]:
    """Return an iterator over the tokens of each text.

    The library's own call spends a third of its time on offsets and masks, which are not needed here.
    """
    if not texts or not tokenizer.is_fast:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return iter(found)
    core = tokenizer.backend_tokenizer
    core.no_truncation()  # a tokenizer may be saved with these on; the library also turns them off in every call
    core.no_padding()
    core.encode_special_tokens = tokenizer.split_special_tokens
    return (text.ids for text in core.encode_batch_fast(texts, add_special_tokens=False))


def _continued(ids: Iterator[list[int]], pieces: int) -> Iterator[int]:
    """Yield the tokens of the next anchored pieces, without their anchors."""
    return chain.from_iterable(piece[1:] for piece in islice(ids, pieces))


def _render(tokenizer: Any, messages: Sequence[Message], *, answering: bool) -> str:
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(list(messages), add_generation_prompt=answering, tokenize=False)
    except (TemplateError, TypeError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise RefusedConversation(f"the chat template refuses a conversation of {roles}: {error}") from error
    return text


def _system_in_user(messages: Sequence[Message]) -> list[Message]:
    """Put a leading system message before the text of the user message after it."""
    if len(messages) > 1 and messages[0]["role"] == "system" and messages[1]["role"] == "user":
        joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return [Message(role="user", content=joined), *messages[2:]]
    return list(messages)


def _read(tokenizer: Any) -> _Template:
    return _read_once(tokenizer, tokenizer.get_chat_template())


@lru_cache(maxsize=8)
def _read_once(tokenizer: Any, _: str) -> _Template:
    """Find what the template does by rendering a small conversation; the unused argument is the key of the cache.

    Raises:
        UnsupportedTemplate: the template does not render the conversation, leaves out the answer, or has no
            generation prompt although it writes a header before an answer: a model would have to write it itself.
    """
    try:
        prompt = _render(tokenizer, [ASKED], answering=True)
        silent = _render(tokenizer, [ASKED], answering=False)
        whole = _render(tokenizer, [ASKED, ANSWERED], answering=False)
        again = _render(tokenizer, [ASKED, ANSWERED, ASKED], answering=True)
    except RefusedConversation as error:
        raise UnsupportedTemplate(str(error)) from error
    before, found, after = whole.rpartition(ANSWER)
    if not found:
        raise UnsupportedTemplate("the chat template does not write an assistant's answer")
    lead = before.removeprefix(prompt)
    agrees = before.startswith(prompt) and not lead.strip()
    least = min(len(prompt), len(before))
    same = next((i for i in range(least) if prompt[i] != before[i]), least)
    if prompt == silent and not agrees:
        raise UnsupportedTemplate(
            f"the chat template has no generation prompt, yet it writes {before[same:]!r} before an answer"
        )
    tokens = tokenizer.added_tokens_decoder.values()
    special = [t.content for t in tokens if t.special]
    # some tokenizers do not mark every control token of their template as special
    own = _any_of(t.content for t in tokens if t.content.strip())
    written = own.findall(again.replace(QUESTION, "").replace(ANSWER, ""))
    ends = own.match(after.lstrip())
    return _Template(
        control=_any_of({*special, *written}),
        anchor=next((t.content for t in tokens if t.special and not t.rstrip), tokenizer.eos_token),
        lead=lead if agrees else "",
        trail=after[: len(after) - len(after.lstrip())] if ends else "",
        end=tokenizer.convert_tokens_to_ids(ends.group()) if ends else tokenizer.eos_token_id,
        takes_system=_takes_system(tokenizer),
        unlike=None if agrees else (prompt[same:], before[same:]),
    )


def _takes_system(tokenizer: Any) -> bool:
    """Return whether the template writes a system message; some templates refuse it, some silently leave it out."""
    try:
        return ORDER in _render(tokenizer, [Message(role="system", content=ORDER), ASKED], answering=True)
    except RefusedConversation:
        return False


def _joins_exactly(tokenizer: Any) -> bool:
    """Return whether separately tokenised prompt and answer are the beginning of the tokenised conversation."""
    text = _render(tokenizer, [ASKED, ANSWERED], answering=False)
    whole: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    apart = [*encode_prompt(tokenizer, [ASKED]), *encode_response(tokenizer, ANSWER)]
    return whole[: len(apart)] == apart or whole == apart[:-1]  # a template may write no end token


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the texts, long ones first; a text of one character cannot be cut."""
    longest_first = sorted({t for t in tokens if len(t) > 1}, key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
