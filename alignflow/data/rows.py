"""The common form of all data: a conversation with its judged answers."""

import hashlib
import json
from dataclasses import dataclass
from typing import TypedDict


class DataError(ValueError):
    """The data cannot be used; the message names the file, row or key and what to do."""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str


@dataclass(frozen=True)
class Row:
    """A conversation that ends with a user's message, and judged answers to it."""

    messages: tuple[Message, ...]
    """The prompt: it ends with the user's turn that must be answered."""
    chosen: str | None = None
    """A good answer; together with ``rejected``, the better of two."""
    rejected: str | None = None
    """A bad answer; together with ``chosen``, the worse of two."""
    margin: float = 0.0
    """How much better the chosen answer is, if the data says so."""
    answer: str | None = None
    """The correct answer, for rules that need it."""
    prefix: str | None = None
    """Of a step pair, the answer so far, perhaps empty: ``chosen`` and ``rejected`` are its next step. None: whole
    answers."""
    source: str = ""
    """File or data set of the row."""
    number: int = 0
    """Row of the source, counted from 1; for a JSONL file, the line."""

    @property
    def prompt(self) -> str:
        """The user's last message: rules and reports get only this part of the prompt."""
        return self.messages[-1]["content"] if self.messages else ""

    @property
    def opening(self) -> str:
        """The user's first message. Conversations with the same first message are on one side of the split."""
        return next((m["content"] for m in self.messages if m["role"] == "user"), "")

    @property
    def prompt_id(self) -> str:
        """A short stable id of the prompt: the hash of its text, or of all its turns if there are several."""
        alone = len(self.messages) == 1
        text = self.prompt if alone else json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
