"""Training on stored data: SFT, reward model, DPO and the rounds of iterative DPO."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from alignflow.checkpoint import Keep, State
from alignflow.loops.update import Diverged, Means, update
from alignflow.optim import MasterAdamW, OptimisationConfig, learning_rate_factor
from alignflow.types import Log, StepOutput

Batch = TypeVar("Batch")


def train(
    batches: Callable[[int], Sequence[Batch]],
    step: Callable[[Batch], StepOutput],
    count: Callable[[Batch], float],
    tokens: Callable[[Batch], int],
    optimizer: MasterAdamW,
    config: OptimisationConfig,
    *,
    log: Log,
    keep: Keep,
    resume: State | None = None,
) -> None:
    """Run ``config.steps`` optimiser steps.

    Args:
        batches: micro-batches of an optimiser step (from 0): a pure function of the step, so that a resumed run
            continues with the data that an uninterrupted one would have seen.
        step: losses of a micro-batch.
        count: what a micro-batch adds to the denominator of the loss.
        tokens: real tokens of a micro-batch, for the speed metric.
        optimizer: of the trained parameters.
        config: steps and learning-rate schedule.
        log: receives (step, metrics).
        keep: called after every step with a function that returns the state to save.
        resume: a state to continue from.

    Raises:
        Diverged: a loss or gradient is not finite.
    """
    done = 0
    if resume is not None:
        optimizer.restore(resume["optimizer"])
        done = resume["step"]
    for k in range(done, config.steps):
        began = time.monotonic()
        micro_batches = batches(k)
        means = Means()
        factor = learning_rate_factor(k, config.steps, config.warmup_fraction)
        try:
            metrics = update(
                micro_batches,
                [step],
                count,
                optimizer,
                factor=factor,
                max_grad_norm=config.max_grad_norm,
                means=means,
            )
        except Diverged as error:
            raise Diverged(f"step {k + 1}: {error}; lower the learning rate or look at this step's data") from None
        seen = sum(tokens(batch) for batch in micro_batches)
        speed = {"tokens": float(seen), "tokens_per_second": seen / (time.monotonic() - began)}
        log(k + 1, {**metrics, **means.result(), "lr": factor * config.learning_rate, **speed})
        keep(k + 1, lambda at=k + 1: {"step": at, "optimizer": optimizer.state()})  # type: ignore[misc]
