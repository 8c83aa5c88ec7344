"""Training on stored data: SFT, reward model, DPO and the rounds of iterative DPO."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from alignflow.checkpoint import Keep, State
from alignflow.loops.update import Diverged, update_that_fits
from alignflow.memory import Budget
from alignflow.optim import MasterAdamW, OptimisationConfig, learning_rate_factor
from alignflow.types import Log, OfflineAlgorithm

Batch = TypeVar("Batch")


def train(
    batches: Callable[[int, int], Sequence[Batch]],
    algorithm: OfflineAlgorithm[Batch],
    optimizer: MasterAdamW,
    config: OptimisationConfig,
    *,
    budget: Budget,
    log: Log,
    keep: Keep,
    resume: State | None = None,
) -> None:
    """Run ``config.steps`` optimiser steps.

    Args:
        batches: returns this process's micro-batches for an optimiser step (from 0) and a budget of tokens: a pure
            function of both, so that a resumed run sees the same data as an uninterrupted one.
        algorithm: computes losses.
        optimizer: optimiser of the trained parameters.
        config: steps, learning-rate schedule and micro-batch size.
        budget: most tokens of a micro-batch; halved when memory runs out, and then part of what the caller keeps.
        log: receives (step, metrics).
        keep: called after every step with a function that returns the state to save.
        resume: a state to continue from.

    Raises:
        Diverged: a loss or gradient is not finite.
        DoesNotFit: the smallest micro-batch does not fit into memory.
    """
    done = 0
    if resume is not None:
        optimizer.restore(resume["optimizer"])
        done = resume["step"]
    for k in range(done, config.steps):
        began = time.monotonic()
        factor = learning_rate_factor(k, config.steps, config.warmup_fraction)
        try:
            metrics = update_that_fits(
                partial(batches, k),
                [algorithm.step],
                algorithm.count,
                algorithm.tokens,
                optimizer,
                budget,
                factor=factor,
                max_grad_norm=config.max_grad_norm,
            )
        except Diverged as error:
            raise Diverged(f"step {k + 1}: {error}; lower the learning rate or look at this step's data") from None
        speed = metrics["tokens"] / (time.monotonic() - began)
        log(k + 1, {**metrics, "lr": factor * config.learning_rate, "tokens_per_second": speed})
        keep(k + 1, lambda at=k + 1: {"step": at, "optimizer": optimizer.state()})  # type: ignore[misc]
