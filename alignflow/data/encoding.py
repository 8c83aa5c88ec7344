"""Conversations and answers to token ids, encoded apart so that the boundary between them is exact."""

from collections.abc import Sequence
from typing import Any

from alignflow.data.rows import Message


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return a conversation in the chat template, up to where the assistant's answer starts."""
    ids = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)["input_ids"]
    return tuple(ids)


def encode_response(tokenizer: Any, response: str) -> tuple[int, ...]:
    """Return an answer's tokens with one end-of-sequence token."""
    ids = tokenizer(response, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return (*ids, tokenizer.eos_token_id)
