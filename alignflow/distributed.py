"""Training with several processes: distributes rows and exchanges results.

Data parallelism as in DDP (Li et al. 2020, arXiv:2006.15704), without its hooks on a module's forward: only adapters
and heads are trained, so gradients are exchanged in one sum over a flat vector per optimiser step. Every process has
the whole base, the same weights and the same data; rows are distributed, and each process cuts its rows into
micro-batches. With a single process there is no process group, accelerate is not imported, and each function returns
immediately.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Value = TypeVar("Value")


class PeerLost(RuntimeError):
    """Another process of this training has ended, so this one cannot continue; the other process reports why."""


def join(*, cpu: bool) -> None:
    """Join the process group of a launcher; each process has its own device.

    Args:
        cpu: True for processes on CPUs (gloo), False for one GPU per process (NCCL).
    """
    from accelerate import PartialState

    with _together():
        PartialState(cpu=cpu)


def world() -> int:
    """Return how many processes train together."""
    return torch.distributed.get_world_size() if _several() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return torch.distributed.get_rank() if _several() else 0


def is_main() -> bool:
    """Return whether this is the main process, which prints, tracks and writes."""
    return rank() == 0


def mine(items: Sequence[Item], costs: Sequence[float] | None = None) -> list[Item]:
    """Return this process's share of the items: a slice; the slices of all ranks in order are all items.

    Args:
        items: what to distribute.
        costs: cost of each item; slices have about equal sums. None: all items cost the same.
    """
    costs = [1.0] * len(items) if costs is None else costs
    total, before, found = sum(costs), 0.0, []
    for item, cost in zip(items, costs, strict=True):
        middle = (before + cost / 2) / max(total, 1e-9)
        if min(int(middle * world()), world() - 1) == rank():
            found.append(item)
        before += cost
    return found


def gather(value: Value) -> list[Value]:
    """Return the values of all processes, by rank. All processes must call it, and all functions below, too.

    Raises:
        PeerLost: another process has ended.
    """
    if not _several():
        return [value]
    from accelerate.utils import gather_object

    with _together():
        found: list[Value] = gather_object([value])
    return found


def agree(flag: bool) -> bool:
    """Return whether the flag is set in any process."""
    return any(gather(flag))


def deal(count: int, work: Callable[[list[int]], Sequence[Value]]) -> list[Value]:
    """Do numbered pieces of work, each in one process, and return all results in order in every process.

    Args:
        count: number of pieces, numbered from 0.
        work: returns a result for each of the given numbers, which may be none.
    """
    return [result for part in gather(list(work(mine(range(count))))) for result in part]


def sum_tensor(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, in place."""
    if _several():
        with _together():
            torch.distributed.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its sum over all processes; it stays None if no process has one."""
    if not _several():
        return
    present = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = sum_tensor(torch.cat([present, *parts]))
    found, *sums = torch.split(flat, [len(parameters), *(p.numel() for p in parameters)])
    for parameter, is_there, total in zip(parameters, found.tolist(), sums, strict=True):
        parameter.grad = total.view_as(parameter) if is_there else None


def barrier() -> None:
    """Wait until all processes have called this."""
    gather(None)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo: plain; NCCL: DistBackendError
        raise PeerLost(f"another process of this training has ended ({error})") from error
