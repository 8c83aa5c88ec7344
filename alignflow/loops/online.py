"""Training on the policy's own samples: sample, score, prepare, then a few epochs of minibatches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from alignflow.checkpoint import Keep, State
from alignflow.data.collate import micro_batches, sequence_lengths, take_rows
from alignflow.loops.update import Diverged, Means, update
from alignflow.optim import MasterAdamW, OptimisationConfig, learning_rate_factor
from alignflow.types import Log, Metrics, Sequences, StepOutput

Batch = TypeVar("Batch")

FIRST_UPDATE_KL = 0.02  # nats a token; bfloat16 forwards of different batch shapes differ by about a tenth of it


@dataclass(frozen=True)
class OnlineAlgorithm(Generic[Batch]):
    """What the loop needs of PPO or GRPO, already bound to models and settings."""

    collect: Callable[[int], tuple[Sequences, Tensor, Metrics]]
    """Sample and score for a step (from 0): sequences, scores (B,) and metrics; a pure function of the step."""
    prepare: Callable[[Sequences, Tensor], tuple[Batch, dict[str, Tensor]]]
    """Log-probs, values and advantages of the whole rollout batch."""
    steps: Sequence[Callable[[Batch], StepOutput]]
    """Losses to add up in each update."""
    count: Callable[[Batch], float]
    """What a micro-batch adds to the denominator of the loss."""


def train(
    algorithm: OnlineAlgorithm[Batch],
    optimizer: MasterAdamW,
    config: OptimisationConfig,
    *,
    epochs: int,
    minibatches: int,
    log: Log,
    keep: Keep,
    resume: State | None = None,
) -> None:
    """Run ``config.steps`` rollout batches, each with ``epochs`` passes of ``minibatches`` optimiser steps.

    Args:
        algorithm: how to sample, prepare and compute losses.
        optimizer: of the trained parameters.
        config: steps, schedule and micro-batch size.
        epochs: passes over each rollout batch.
        minibatches: optimiser steps a pass.
        log: receives (step, metrics), once a rollout batch.
        keep: called after every rollout batch with a function that returns the state to save.
        resume: a state to continue from.

    Raises:
        Diverged: a loss is not finite, or the first update does not start from the sampling policy.
    """
    done = 0
    if resume is not None:
        optimizer.restore(resume["optimizer"])
        done = resume["step"]
    for k in range(done, config.steps):
        began = time.monotonic()
        sequences, scores, sampled = algorithm.collect(k)
        batch, prepared = algorithm.prepare(sequences, scores)
        means = Means()
        means.add(prepared)
        factor = learning_rate_factor(k, config.steps, config.warmup_fraction)
        metrics: dict[str, float] = {}
        for index, rows in enumerate(_minibatches(len(scores), epochs, minibatches, seed=(config.seed, k))):
            parts = micro_batches(sequence_lengths(sequences), rows, config.micro_batch_tokens)
            part_means = Means()
            try:
                metrics = update(
                    [take_rows(batch, part) for part in parts],
                    algorithm.steps,
                    algorithm.count,
                    optimizer,
                    factor=factor,
                    max_grad_norm=config.max_grad_norm,
                    means=part_means,
                )
            except Diverged as error:
                raise Diverged(f"step {k + 1}: {error}; lower the learning rate or look at the rewards") from None
            updated = part_means.result()
            if index == 0 and updated["kl/approx"] > FIRST_UPDATE_KL:
                raise Diverged(
                    f"step {k + 1}: the first update should start from the policy that sampled, "
                    f"but its KL to it is {updated['kl/approx']:.3f} nats a token"
                )
            means.add({name: torch.tensor(value) for name, value in {**metrics, **updated}.items()})
        tokens = int(sequences.attention_mask.sum())
        speed = {"tokens": float(tokens), "tokens_per_second": tokens / (time.monotonic() - began)}
        log(k + 1, {**sampled, **means.result(), "lr": factor * config.learning_rate, **speed})
        keep(k + 1, lambda at=k + 1: {"step": at, "optimizer": optimizer.state()})  # type: ignore[misc]


def _minibatches(rows: int, epochs: int, minibatches: int, *, seed: tuple[int, int]) -> list[list[int]]:
    """Return the rows of every optimiser step: each epoch shuffles all rows and deals them out."""
    generator = torch.Generator().manual_seed(seed[0] * 1_000_003 + seed[1])
    result = []
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator).tolist()
        result += [order[i::minibatches] for i in range(minibatches)]
    return result
