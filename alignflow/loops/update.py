"""One optimiser step from micro-batches: the only place where losses are reduced."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

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
    same gradient as one.

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
    for number, batch in enumerate(micro_batches, start=1):
        for step in steps:
            output = step(batch)
            total = torch.where(output.mask, output.losses, 0.0).sum() / denominator
            if not math.isfinite(float(total.detach())):
                raise Diverged(f"the loss of micro-batch {number} of {len(micro_batches)} is {float(total.detach())}")
            total.backward()  # type: ignore[no-untyped-call]
            loss += float(total.detach())
            means.add(output.metrics)
    norm = optimizer.step(factor=factor, max_grad_norm=max_grad_norm)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient norm is {norm}")
    return {"loss": loss, "grad_norm": norm}
