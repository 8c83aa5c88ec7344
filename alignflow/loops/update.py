"""One optimiser step from micro-batches: the only place where losses are reduced."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from alignflow import distributed
from alignflow.memory import Budget, fitting, part
from alignflow.optim import MasterAdamW
from alignflow.types import StepOutput

Batch = TypeVar("Batch")


class Diverged(RuntimeError):
    """A loss or gradient is not finite; the last checkpoint is still valid."""


class Means:
    """Collects values by name and returns the mean of each name."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add values of any shape under their names."""
        for name, values in metrics.items():
            self._sums[name] += float(values.detach().double().sum())
            self._counts[name] += values.numel()

    def join(self, other: "Means") -> None:
        """Add all values of another instance."""
        for name, count in other._counts.items():
            self._sums[name] += other._sums[name]
            self._counts[name] += count

    def result(self) -> dict[str, float]:
        """Return the mean of each name; names without any value are left out."""
        return {name: self._sums[name] / count for name, count in self._counts.items() if count}


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
    """Accumulate gradients of all micro-batches, divide by their common denominator, and step once.

    loss = Σ_micro-batches Σ where(mask, losses, 0) / Σ_micro-batches count, over the micro-batches of all processes, so
    that k micro-batches give the same gradient as one. When memory runs out, all are repeated in smaller ones. With
    several processes, only the process whose memory ran out repeats its share; the others wait for its gradients.

    Args:
        cut: returns this process's part of the optimiser batch as micro-batches within a budget of tokens, maybe none.
        steps: losses to add; each has its own forward and backward pass, so only one graph is in memory.
        count: returns what a micro-batch adds to the denominator.
        tokens: returns the number of real tokens of a micro-batch.
        optimizer: optimiser of all trained parameters.
        budget: is reduced in place.
        factor: share of the peak learning rate.
        max_grad_norm: largest gradient norm; larger ones are clipped.

    Returns:
        The loss, the gradient norm, the means of the steps' metrics, and the tokens of all micro-batches.

    Raises:
        Diverged: the loss or the gradient is not finite in some process; no weight was changed.
        DoesNotFit: the smallest micro-batch does not fit; no weight was changed.
    """
    denominator: list[float] = []

    def attempt(parts: Sequence[Batch]) -> tuple[_Share, int]:
        if not denominator:  # the denominator is the same in every attempt, and the other processes take part only once
            denominator.append(_denominator(parts, count))
        return _accumulate(parts, steps, denominator[0], optimizer), sum(map(tokens, parts))

    share, seen = fitting(cut, attempt, tokens, budget)
    done = _step(share, optimizer, factor=factor, max_grad_norm=max_grad_norm)
    return {**done, "tokens": float(sum(distributed.gather(seen)))}


@dataclass(frozen=True)
class _Share:
    """What one process contributes to an optimiser step besides gradients."""

    loss: float
    means: Means
    fault: str = ""
    """Why the step must not be made."""


def _denominator(micro_batches: Sequence[Batch], count: Callable[[Batch], float]) -> float:
    return max(1.0, sum(distributed.gather(sum(count(batch) for batch in micro_batches))))


def _accumulate(
    micro_batches: Sequence[Batch],
    steps: Sequence[Callable[[Batch], StepOutput]],
    denominator: float,
    optimizer: MasterAdamW,
) -> _Share:
    """Backpropagate this process's micro-batches, without communication, so that it can be repeated.

    First drops the gradients of an attempt that ran out of memory.
    """
    loss, means = 0.0, Means()
    optimizer.drop_gradients()
    for number, batch in enumerate(micro_batches):
        for step in steps:
            with part(number):
                output = step(batch)
                total = torch.where(output.mask, output.losses, 0.0).sum() / denominator
                found = float(total.detach())
                if not math.isfinite(found):
                    where = f" in process {distributed.rank()}" if distributed.world() > 1 else ""
                    which = f"micro-batch {number + 1} of {len(micro_batches)}{where}"
                    return _Share(loss, means, fault=f"the loss of {which} is {found}")
                total.backward()  # type: ignore[no-untyped-call]
            loss += found
            means.add(output.metrics)
    return _Share(loss, means)


def _step(share: _Share, optimizer: MasterAdamW, *, factor: float, max_grad_norm: float) -> dict[str, float]:
    """Make the optimiser step from the shares of all processes."""
    shares, means = distributed.gather(share), Means()
    for one in shares:
        if one.fault:
            raise Diverged(one.fault)
        means.join(one.means)
    norm = optimizer.step(factor=factor, max_grad_norm=max_grad_norm)
    if not math.isfinite(norm):
        raise Diverged(f"the gradient norm is {norm}")
    return {"loss": sum(one.loss for one in shares), "grad_norm": norm, **means.result()}
