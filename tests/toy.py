"""Models that are tables, so that an algorithm's step runs without a network; mask rows; checks."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from alignflow.data.collate import collate
from alignflow.loops.update import update_that_fits
from alignflow.memory import Budget
from alignflow.ops import token_logprobs
from alignflow.optim import MasterAdamW, OptimisationConfig
from alignflow.types import Example, Rollouts, Sequences, StepOutput

Batch = TypeVar("Batch")

CONFIG = OptimisationConfig(
    steps=6,
    batch_size=4,
    learning_rate=0.05,
    warmup_fraction=0.2,
    weight_decay=0.01,
    max_grad_norm=1.0,
    micro_batch_tokens=64,
    seed=1,
)

ON_CUDA = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


def rows(lengths: Sequence[tuple[int, int]]) -> Sequences:
    """Return sequences of the given prompt and response lengths."""
    return collate([Example(tuple(range(1, p + 1)), tuple(range(1, r + 1))) for p, r in lengths])


def enough(size: int) -> Budget:
    """Return a budget of tokens that must never be halved."""
    return Budget(size, pytest.fail)


def update(
    parts: Sequence[Batch],
    steps: Sequence[Callable[[Batch], StepOutput]],
    count: Callable[[Batch], float],
    optimizer: MasterAdamW,
    *,
    max_grad_norm: float = 9.0,
) -> dict[str, float]:
    """Take one optimiser step at the peak learning rate from micro-batches that all fit."""
    found = update_that_fits(
        lambda _: parts, steps, count, lambda _: 0, optimizer, enough(1), factor=1.0, max_grad_norm=max_grad_norm
    )
    return {name: value for name, value in found.items() if name != "tokens"}


def rollouts(sequences: Sequences, scores: Tensor) -> Rollouts:
    """Return rollouts that all have a score and all ended by themselves."""
    everywhere = torch.ones(len(scores), dtype=torch.bool)
    return Rollouts(sequences, scores, everywhere, ~everywhere)


class Given:
    """Returns the tensors it was given, for any role."""

    def __init__(self, logprobs: Tensor | None = None, scores: Tensor | None = None, values: Tensor | None = None):
        self._logprobs, self._scores, self._values = logprobs, scores, values
        self.temperatures: list[float] = []

    def logprobs(
        self, role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        assert role == "policy"
        assert self._logprobs is not None
        self.temperatures.append(temperature)
        mask = batch.response_mask[:, 1:]
        shown = torch.where(mask, self._logprobs, 0.0)
        return shown, torch.full_like(shown, 2.0).where(mask, 0.0) if entropy else None

    def scores(self, role: str, batch: Sequences) -> Tensor:
        assert role == "reward_model"
        assert self._scores is not None
        return self._scores

    def values(self, role: str, batch: Sequences) -> Tensor:
        assert role == "critic"
        assert self._values is not None
        return torch.where(batch.response_mask[:, 1:], self._values, 0.0)


class Uncertain(Given):
    """Answers with log-probs and with entropies that carry a gradient, as a model's do."""

    def logprobs(
        self, role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        shown, found = super().logprobs(role, batch, temperature, entropy)
        return shown, None if found is None else found.requires_grad_()


def random_like(batch: Sequences, seed: int, scale: float = 0.3) -> Tensor:
    """Return one random number per token, zero outside the response. (B, S-1)"""
    mask = batch.response_mask[:, 1:]
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where(mask, scale * noise, 0.0)


class Bigram:
    """A language model that is one table of logits: a real ``Models`` small enough for float64-like checks."""

    def fingerprint(self, role: str) -> str:
        table = self.table if role == "policy" else self.start
        return str(table.detach().flatten().tolist())

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = Parameter(torch.randn(12, 12, generator=generator))
        self.start = self.table.detach().clone()

    def logprobs(
        self, role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        table = self.table if role == "policy" else self.start
        mask = batch.response_mask[:, 1:]
        one_hot = torch.eye(12)
        hidden = table[batch.input_ids[:, :-1][mask]]
        logprobs, found = token_logprobs(
            hidden, one_hot, batch.input_ids[:, 1:][mask], temperature=temperature, entropy=entropy
        )
        zeros = torch.zeros(mask.shape)
        return zeros.masked_scatter(mask, logprobs), zeros.masked_scatter(mask, found) if entropy else None


def plain_numbers(metrics: Mapping[str, Tensor]) -> None:
    """Check that metrics can be averaged as they are and keep no graph alive."""
    for name, values in metrics.items():
        assert values.is_floating_point(), name
        assert not values.requires_grad, name
