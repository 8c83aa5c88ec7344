"""Repeat work that does not fit into memory in smaller parts, which changes no result."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

SIGNS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the text of a RuntimeError of torch, where it has no type of its own."""


@dataclass
class Budget:
    """What a pass may hold at once; halved for the rest of the run when memory runs out."""

    size: int
    """Of the largest part: tokens, or rows when sampling."""
    announce: Callable[[str], None]
    """Receives one line for the user each time."""
    unit: str = "tokens"


class DoesNotFit(ValueError):
    """Memory ran out on a part that cannot be cut further."""


class _RanOut(Exception):
    """Memory ran out in a part of the work."""

    def __init__(self, part: int) -> None:
        super().__init__(part)
        self.part = part


@contextmanager
def part(number: int) -> Iterator[None]:
    """Tell ``fitting`` that memory ran out in this part (from 0) of its work; wrap nothing that must not run twice."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS):
            raise _RanOut(number) from error
        raise


def fitting(
    cut: Callable[[int], Sequence[Part]],
    run: Callable[[Sequence[Part]], Result],
    size: Callable[[Part], int],
    budget: Budget,
) -> Result:
    """Run work that is cut into parts, and all of it again in smaller parts when memory runs out.

    Parts come longest rows first, so what does not fit shows early and little is done twice.

    Args:
        cut: returns the parts for a budget; for 1, the smallest there are.
        run: does the work from its beginning, each part inside ``part``.
        size: what a part holds, in the budget's unit.
        budget: stays as small as it became.

    Raises:
        DoesNotFit: the parts are the smallest there are.
    """
    while True:
        parts = cut(budget.size)
        try:
            return run(parts)
        except _RanOut as error:
            failed = size(parts[error.part])
        # here and not in the handler above: there the error still holds the tensors of the failed part
        if len(parts) == len(cut(1)):
            raise DoesNotFit(f"memory ran out on {failed} {budget.unit}, a row, pair or group that cannot be cut")
        del parts
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        budget.size = max(1, min(budget.size, failed) // 2)
        budget.announce(
            f"memory ran out on {failed} {budget.unit} at once; goes on with {budget.size}, which changes no result"
        )
