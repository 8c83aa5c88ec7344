"""The tokens that end responses, and the one of the data."""

from collections.abc import Sequence

from alignflow.data.encoding import end_of_turn
from alignflow.models.roles import SharedBase
from alignflow.types import Example


def eos_ids(models: SharedBase) -> list[int]:
    """Return every token that ends a response: the chat template's, the tokenizer's, and the generation settings'."""
    tokenizer = models.base.tokenizer
    configured = models.base.model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return sorted({end_of_turn(tokenizer), tokenizer.eos_token_id, *(i for i in more if i is not None)})


def ended_as_in_data(models: SharedBase, examples: Sequence[Example]) -> list[Example]:
    """Return examples as a reward model has learned to read them: the chat template's token ends each that ended.

    A response may end with any token of ``eos_ids``; of these, responses of the data have the template's alone.
    """
    ends, end = set(eos_ids(models)), end_of_turn(models.base.tokenizer)
    return [Example(p, (*r[:-1], end)) if r and r[-1] in ends else Example(p, r) for p, r in examples]
