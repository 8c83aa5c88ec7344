"""Training on the policy's own samples: sample, score, prepare, then several epochs of minibatches."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from alignflow.checkpoint import Keep, State
from alignflow.data.collate import sequence_lengths, take_rows
from alignflow.loops.order import micro_batches
from alignflow.loops.update import Diverged, Means, update_that_fits
from alignflow.memory import Budget
from alignflow.optim import MasterAdamW, OptimisationConfig, learning_rate_factor
from alignflow.types import Log, Metrics, OnlineAlgorithm, Rollouts, Sequences


class Prepared(Protocol):
    """A rollout batch ready for updates."""

    @property
    def sequences(self) -> Sequences:
        """Rows whose response mask is all False are not trained on."""
        ...


Batch = TypeVar("Batch", bound=Prepared)
Collect = Callable[[int], tuple[Rollouts, Metrics]]
"""Samples and scores for a step (from 0); a pure function of step and policy."""

# nats per token, KL of the first update's policy to the one that sampled; bfloat16 forward passes with other batch
# shapes differ by about a tenth of it
FIRST_UPDATE_KL = 0.02
# nats per response, KL of the policy to its reference before any update; equal weights on equal rows give 0
START_KL = 0.01


def train(
    algorithm: OnlineAlgorithm[Batch],
    collect: Collect,
    optimizer: MasterAdamW,
    config: OptimisationConfig,
    *,
    epochs: int,
    minibatches: int,
    target_kl: float | None,
    budget: Budget,
    log: Log,
    keep: Keep,
    resume: State | None = None,
) -> None:
    """Run ``config.steps`` rollout batches, each with ``epochs`` passes of ``minibatches`` optimiser steps.

    Args:
        algorithm: prepares rollouts and computes losses.
        collect: samples and scores.
        optimizer: optimiser of the trained parameters.
        config: steps, schedule and micro-batch size.
        epochs: passes over each rollout batch.
        minibatches: optimiser steps per pass.
        target_kl: updates on a rollout batch stop once the KL to the policy that sampled is above this, nats per
            token; None: never.
        budget: most tokens of a micro-batch; halved when memory runs out, and then part of what the caller keeps.
        log: receives (step, metrics), once per rollout batch.
        keep: called after every rollout batch with a function that returns the state to save.
        resume: a state to continue from.

    Raises:
        Diverged: a loss is not finite, the policy does not start at its reference, or the first update does not
            start from the policy that sampled.
        DoesNotFit: the smallest micro-batch does not fit into memory.
    """
    done, carry = 0, algorithm.start
    if resume is not None:
        optimizer.restore(resume["optimizer"])
        done, carry = resume["step"], resume["carry"]
    for k in range(done, config.steps):
        began = time.monotonic()
        rollouts, sampled = collect(k)
        batch, prepared, carry = algorithm.prepare(rollouts, carry, k == 0 or epochs * minibatches > 1)
        if k == 0:
            _check_start(prepared["kl/reference"])
        means = Means()
        means.add(prepared)
        factor = learning_rate_factor(k, config.steps, config.warmup_fraction)
        lengths, prompts = sequence_lengths(batch.sequences), batch.sequences.prompts()
        updates = 0
        for rows in _minibatches(batch.sequences, epochs, minibatches, seed=(config.seed, k)):
            try:
                updated = update_that_fits(
                    partial(_cut, batch, lengths, prompts, rows),
                    algorithm.steps,
                    algorithm.count,
                    lambda part: part.sequences.tokens(),
                    optimizer,
                    budget,
                    factor=factor,
                    max_grad_norm=config.max_grad_norm,
                )
            except Diverged as error:
                raise Diverged(f"step {k + 1}: {error}; lower the learning rate or look at the rewards") from None
            if updates == 0 and updated["kl/approx"] > FIRST_UPDATE_KL:
                raise Diverged(
                    f"step {k + 1}: the first update should start from the policy that sampled, "
                    f"but its KL to it is {updated['kl/approx']:.3f} nats per token"
                )
            means.add({name: torch.tensor(value) for name, value in updated.items()})
            updates += 1
            if target_kl is not None and updated["kl/approx"] > target_kl:
                break
        tokens = rollouts.sequences.tokens()
        speed = {"tokens": float(tokens), "tokens_per_second": tokens / (time.monotonic() - began)}
        rest = {"updates": float(updates), "lr": factor * config.learning_rate, **speed}
        log(k + 1, {**sampled, **means.result(), **rest})
        keep(k + 1, lambda at=k + 1, carry=carry: {"step": at, "optimizer": optimizer.state(), "carry": carry})  # type: ignore[misc]


def _cut(
    batch: Batch, lengths: Sequence[int], prompts: Sequence[Sequence[int]], rows: Sequence[int], budget: int
) -> list[Batch]:
    return [take_rows(batch, part) for part in micro_batches(lengths, rows, budget, prompts)]


def _check_start(kl: Tensor) -> None:
    distance = float(kl.abs().mean())
    if distance > START_KL:
        raise Diverged(
            f"the policy should start at its reference, but is {distance:.3f} nats per response away; "
            "they were loaded from different adapters"
        )


def _minibatches(sequences: Sequences, epochs: int, minibatches: int, *, seed: tuple[int, int]) -> list[list[int]]:
    """Return the rows of every optimiser step: each epoch shuffles the rows that count and divides them."""
    rows = sequences.response_mask.any(1).nonzero()[:, 0].tolist()
    generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    result = []
    for _ in range(epochs):
        order = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]
        result += [order[i::minibatches] for i in range(min(minibatches, len(rows)))]
    return result
