"""Samples responses: one prefill per distinct prompt, then one token per row and step; finished rows leave the batch.

Each row draws from its own random stream, which depends on seed and row only. But the distribution it draws from is
rounded, and how depends on the shape of the batch. So the same rows in the same batches give the same responses. In
other batches (``rows``, or the number of processes) a response changes if a draw is within the rounding of an edge
between two tokens: rare in float32, frequent in bfloat16. The batches are part of the result. There is no top-k or
top-p, because training uses log-probs of the full distribution.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alignflow.distributed import gather, mine
from alignflow.models.load import check_length, decoder_of, learned_positions, position_ids, softcap_of

SHRINK = 0.75  # finished rows leave when they are at least a quarter, because shrinking copies the whole cache


@dataclass(frozen=True)
class Response:
    """A sampled response."""

    tokens: tuple[int, ...]
    """Token ids up to and including the first end-of-sequence token."""
    truncated: bool
    """True if the length limit was reached first."""
    logprobs: tuple[float, ...] = field(compare=False)
    """Log-prob of each token at the sampling temperature, nats, from the logits that it was sampled from."""


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    eos_ids: Sequence[int],
    max_response_length: int,
    temperature: float,
    seed: int,
    rows: int,
    streams: Sequence[int] | None = None,
    tell: Callable[[float], None] | None = None,
) -> list[Response]:
    """Sample one response to each prompt.

    Args:
        model: a causal language model of transformers whose logits are head(hidden states), with or without a cap.
        prompts: token ids; repeat a prompt for several samples.
        eos_ids: tokens that end a response.
        max_response_length: maximum number of tokens of a response, end-of-sequence included.
        temperature: divides the logits; 0 takes the most likely token.
        seed: seed of all random streams.
        rows: number of responses in a batch; part of the result, see above.
        streams: number of each prompt's random stream; by default its place among the prompts.
        tell: receives the share of the work that is done, after each token.

    Returns:
        One response per prompt, in order.

    Raises:
        TooLong: a prompt and a response of maximum length exceed the model's learned positions.
    """
    check_length(max(map(len, prompts), default=0) + max_response_length, learned_positions(model))
    numbers = range(len(prompts)) if streams is None else streams
    batches = cut(mine(by_length(prompts)), rows)
    result: dict[int, Response] = {}
    for place, batch in enumerate(batches):
        draws = torch.stack([_uniforms(seed, numbers[i], max_response_length) for i in batch])

        def step(share: float, before: int = place) -> None:
            if tell:
                tell((before + share) / len(batches))

        tokens = _sample(model, [tuple(prompts[i]) for i in batch], draws, set(eos_ids), temperature, step)
        result.update(zip(batch, tokens, strict=True))
    for part in gather(result):
        result.update(part)
    return [result[i] for i in range(len(prompts))]


def by_length(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the places of prompts in the order of sampling.

    Similar lengths next to each other need the least padding; equal prompts next to each other are prefilled once.
    """
    return sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i]), i))


def cut(places: Sequence[int], rows: int) -> list[list[int]]:
    """Return places in groups that are sampled at once."""
    return [list(places[start : start + rows]) for start in range(0, len(places), rows)]


def row_seed(seed: int, row: int) -> int:
    """Return the seed of a row's random stream."""
    return (seed * 1_000_003 + row) % 2**63


def _uniforms(seed: int, row: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(row_seed(seed, row))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _sample(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    draws: Tensor,
    eos_ids: set[int],
    temperature: float,
    tell: Callable[[float], None],
) -> list[Response]:
    from alignflow.sampling.kv_cache import spread

    device = model.device
    draws = draws.to(device)
    kinds = {prompt: kind for kind, prompt in enumerate(dict.fromkeys(prompts))}
    logits, mask, cache = _prefill(model, list(kinds))
    rows = torch.tensor([kinds[prompt] for prompt in prompts], device=device)
    spread(cache, rows, draws.shape[1] - 1, getattr(model, "attention_dtype", None))
    logits, mask = logits[rows], mask[rows]
    positions = mask.sum(1, keepdim=True)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    alive = list(range(len(prompts)))  # response of each row of the batch
    for t in range(draws.shape[1]):
        chosen, found = _choose(logits, draws[alive, t], temperature)
        for row, token, logprob in zip(alive, chosen.tolist(), found.tolist(), strict=True):
            if not ended[row]:
                tokens[row].append(token)
                logprobs[row].append(logprob)
                ended[row] = token in eos_ids
        tell((t + 1) / draws.shape[1])
        if all(ended) or t + 1 == draws.shape[1]:
            break
        keep = [i for i, row in enumerate(alive) if not ended[row]]
        if len(keep) <= SHRINK * len(alive):
            index = torch.tensor(keep, device=device)
            cache.batch_select_indices(index)
            chosen, mask, positions = chosen[index], mask[index], positions[index]
            alive = [alive[i] for i in keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = _logits(model, chosen[:, None], mask, positions, cache)
        positions = positions + 1
    return [Response(tuple(t), not e, tuple(p)) for t, e, p in zip(tokens, ended, logprobs, strict=True)]


def _prefill(model: Any, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor, Any]:
    """Return the logits after each prompt (B, V), the mask of their left-padded tokens (B, S), and their cache."""
    from transformers import DynamicCache

    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    cache = DynamicCache(config=model.config)
    return _logits(model, ids, mask, position_ids(mask), cache), mask, cache


def _logits(model: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """Return the logits after the last of new tokens, float32. (B, T) -> (B, V)

    The head gets one contiguous row per sequence; for a strided view torch would copy the head's whole weight.
    """
    states = decoder_of(model)(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state[:, -1]
    logits: Tensor = model.get_output_embeddings()(states.contiguous()).float()
    cap = softcap_of(model)
    return logits.div_(cap).tanh_().mul_(cap) if cap else logits


def _choose(logits: Tensor, draws: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the token where the cumulative distribution exceeds the row's draw, and its log-prob. (B, V), (B,) -> (B,)

    Overwrites the logits. At temperature 0 the most likely token has probability 1: log-prob 0.
    """
    if temperature == 0:
        return logits.argmax(-1), torch.zeros_like(logits[:, 0])
    probabilities = torch.softmax(logits.div_(temperature), -1)
    cumulative = torch.cumsum(probabilities, -1, out=logits)
    passed = torch.searchsorted(cumulative, draws[:, None].to(cumulative.dtype) * cumulative[:, -1:])
    chosen = passed.clamp(max=logits.shape[-1] - 1)
    return chosen[:, 0], probabilities.gather(1, chosen)[:, 0].log()
