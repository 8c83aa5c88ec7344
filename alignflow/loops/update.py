"""One optimiser step from micro-batches: the only place where losses are reduced."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from alignflow.memory import Budget, fitting, part
from alignflow.optim import MasterAdamW
from alignflow.types import StepOutput

Batch = TypeVar("Batch")


class Diverged(RuntimeError):
    """A loss or gradient is not finite; the last checkpoint is good."""


class Means:
    """Gathers tensors under names and returns their means over everything that was added."""

    def __init__(self) -> None:
        self._parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add values of any shape under their names."""
        for name, values in metrics.items():
            self._parts[name].append(values.detach().float().flatten())

    def result(self) -> dict[str, float]:
        """Return the mean of each name; names without any value are left out."""
        joined = {name: torch.cat(parts) for name, parts in self._parts.items()}
        return {name: float(values.mean()) for name, values in joined.items() if len(values)}


def update(
    micro_batches: Sequence[Batch],
    steps: Sequence[Callable[[Batch], StepOutput]],
    count: Callable[[Batch], float],
    optimizer: MasterAdamW,
    *,
    factor: float,
    max_grad_norm: float,
    means: Means,
) -> dict[str, float]:
    """Accumulate gradients of all micro-batches, divide by their common denominator, and step once.

    loss = Σ_micro-batches Σ where(mask, losses, 0) / Σ_micro-batches count, so that k micro-batches give the
    same gradient as one. Gradients that an attempt left behind which ran out of memory are dropped first.

    Args:
        micro_batches: the optimiser batch, in parts that fit in memory.
        steps: losses to add up; each runs and backpropagates by itself, so their graphs never coexist.
        count: what a micro-batch adds to the denominator.
        optimizer: of all trained parameters.
        factor: share of the peak learning rate.
        max_grad_norm: clips the global gradient norm.
        means: receives the metrics of the steps.

    Raises:
        Diverged: the loss or the gradient is not finite; no weight was changed.
    """
    denominator = max(1.0, sum(count(batch) for batch in micro_batches))
    loss = 0.0
    optimizer.drop_gradients()
    for number, batch in enumerate(micro_batches):
        for step in steps:
            with part(number):
                output = step(batch)
                total = torch.where(output.mask, output.losses, 0.0).sum() / denominator
                found = float(total.detach())
                if not math.isfinite(found):
                    raise Diverged(f"the loss of micro-batch {number + 1} of {len(micro_batches)} is {found}")
                total.backward()  # type: ignore[no-untyped-call]
            loss += found
            means.add(output.metrics)
    norm = optimizer.step(factor=factor, max_grad_norm=max_grad_norm)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient norm is {norm}")
    return {"loss": loss, "grad_norm": norm}


def update_that_fits(
    cut: Callable[[int], Sequence[Batch]],
    steps: Sequence[Callable[[Batch], StepOutput]],
    count: Callable[[Batch], float],
    tokens: Callable[[Batch], int],
    optimizer: MasterAdamW,
    budget: Budget,
    *,
    factor: float,
    max_grad_norm: float,
) -> dict[str, float]:
    """Do ``update`` in micro-batches that fit into memory; all of it again in smaller ones when it runs out.

    Args:
        cut: micro-batches of the optimiser step within a budget of tokens.
        steps: as for ``update``, like the rest.
        count: what a micro-batch adds to the denominator.
        tokens: real tokens of a micro-batch.
        optimizer: of all trained parameters.
        budget: stays as small as it became.
        factor: share of the peak learning rate.
        max_grad_norm: clips the global gradient norm.

    Returns:
        What ``update`` returns, the means of the steps' metrics, and the tokens of all micro-batches.

    Raises:
        Diverged: the loss or the gradient is not finite; no weight was changed.
        DoesNotFit: the smallest micro-batch does not fit; no weight was changed.
    """

    def attempt(parts: Sequence[Batch]) -> dict[str, float]:
        means = Means()
        done = update(parts, steps, count, optimizer, factor=factor, max_grad_norm=max_grad_norm, means=means)
        return {**done, **means.result(), "tokens": float(sum(map(tokens, parts)))}

    return fitting(cut, attempt, tokens, budget)
