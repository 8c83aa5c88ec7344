"""The forms: sets of roles of columns that together give rows. The first form of the table that fits is taken."""

from collections.abc import Mapping
from dataclasses import dataclass

Roles = tuple[str, ...]

PROMPT: Roles = ("prompt", "input", "history", "system", "tools", "media")
JUDGED_PAIR: Roles = (*PROMPT, "margin", "score_chosen", "score_rejected", "pair_scores", "answer")


@dataclass(frozen=True)
class Form:
    """A form of records."""

    keys: str
    """What a record holds, in words."""
    needs: tuple[Roles, ...]
    """Sets of roles, of which one must be there."""
    may: Roles
    """Roles that are read if they are there."""


FORMS: Mapping[str, Form] = {
    "tree": Form("a message with ranked replies, and theirs", (("tree",),), ()),
    "step_pair": Form(
        "prompt, prefix (the answer so far; or initial_reason_steps), chosen, rejected: two next steps",
        (("prefix", "chosen", "rejected"),),
        JUDGED_PAIR,
    ),
    "preference": Form(
        "prompt, chosen, rejected: each a text, a transcript or chat messages; or chosen and rejected with the prompt",
        (("chosen", "rejected"), ("chat", "rejected"), ("response", "rejected"), ("prompt", "best_first")),
        ("prefix", *JUDGED_PAIR),
    ),
    "ranked": Form(
        "prompt, responses with scores or ranks: lists, objects, or numbered columns",
        (("responses", "scores"), ("responses", "ranks")),
        (*PROMPT, "answer"),
    ),
    "compared": Form(
        "prompt, two or more responses, and the number, letter or name of the better one, a tie, or a signed strength",
        (("responses", "winner"), ("responses", "flags")),
        (*PROMPT, "margin", "answer"),
    ),
    "thumbs": Form(
        "prompt, response, label (good or bad); or chat messages and label",
        (("response", "label"), ("judged_answer", "label"), ("chat", "label")),
        PROMPT,
    ),
    "choices": Form(
        "question, choices, and the number, letter or text of the correct one",
        (("prompt", "choices", "correct"),),
        PROMPT,
    ),
    "prompt_answer": Form(
        "prompt (or question), and the correct answer",
        (("prompt", "answer"), ("chat", "answer")),
        (*PROMPT, "solution", "chosen", "rejected"),
    ),
    "demonstrations": Form(
        "good answers alone: prompt and response, or chat messages that end with the assistant's answer",
        (("prompt", "chosen"), ("prompt", "response"), ("chat",)),
        PROMPT,
    ),
    "prompts": Form("prompt (or question): a text or chat messages", (("prompt",),), (*PROMPT, "rejected")),
}

READ_BY_NAME = (
    *("prompt", "input", "history", "system", "tools", "prefix", "chosen", "rejected", "margin"),
    *("score_chosen", "score_rejected", "response", "responses", "scores", "ranks", "winner", "label"),
    *("choices", "correct", "answer", "solution", "chat", "tree"),
)
"""Roles whose columns a user may name."""
IGNORE = "ignore"
"""Role of the columns that nothing need read."""
