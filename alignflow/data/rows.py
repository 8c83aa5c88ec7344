"""What every source of data is turned into: a conversation with what is known about its answers."""

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
    """A conversation up to a user's message, and the answers that somebody judged."""

    messages: tuple[Message, ...]
    """The prompt: it ends with the user's turn that is to be answered."""
    chosen: str | None = None
    """A good answer; with ``rejected``, the better of two."""
    rejected: str | None = None
    """A bad answer; with ``chosen``, the worse of two."""
    margin: float = 0.0
    """By how much the chosen answer is better, where the data says so."""
    answer: str | None = None
    """The right answer, for rules that ask for one."""
    source: str = ""
    """File or data set that it comes from."""
    number: int = 0
    """Row of the source, from 1; of a JSONL file, the line."""

    @property
    def prompt(self) -> str:
        """The user's last message: what rules and reports see of the prompt."""
        return self.messages[-1]["content"] if self.messages else ""

    @property
    def opening(self) -> str:
        """The user's first message. All conversations that open alike are on one side of a split."""
        return next((m["content"] for m in self.messages if m["role"] == "user"), "")

    @property
    def prompt_id(self) -> str:
        """A short stable name of the prompt: the hash of its text, or of all its turns if there are several."""
        alone = len(self.messages) == 1
        text = self.prompt if alone else json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
