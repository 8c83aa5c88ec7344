"""Repeats work in smaller parts when memory runs out; results do not change."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")

SIGNS = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
"""Part of the message of a RuntimeError of torch; torch has no separate error type for this."""


@dataclass
class Budget:
    """Largest size of one pass; halved for the rest of the run when memory runs out."""

    size: int
    """Unit of the size: tokens, or rows when sampling."""
    announce: Callable[[str], None]
    """Receives one line for the user each time the size is halved."""
    unit: str = "tokens"


class DoesNotFit(ValueError):
    """Memory ran out on a part that cannot be split further."""


class _RanOut(Exception):
    """Memory ran out in a part of the work."""

    def __init__(self, part: int) -> None:
        super().__init__(part)
        self.part = part


@contextmanager
def part(number: int) -> Iterator[None]:
    """Report to ``fitting`` that memory ran out in this part (from 0) of its work; the code inside may run twice."""
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
    """Run work in parts; when memory runs out, run all of it again in smaller parts.

    Parts are sorted by length, longest rows first, so memory runs out early and little work is repeated.

    Args:
        cut: returns the parts for a budget; for 1, the smallest possible ones.
        run: does the whole work, each part inside ``part``.
        size: returns the size of a part in the budget's unit.
        budget: is reduced in place.

    Raises:
        DoesNotFit: memory ran out with the smallest parts.
    """
    while True:
        parts = cut(budget.size)
        try:
            return run(parts)
        except _RanOut as error:
            failed = size(parts[error.part])
        # not in the handler above, where the error still holds the tensors of the failed part
        if len(parts) == len(cut(1)):
            raise DoesNotFit(f"memory ran out on {failed} {budget.unit}, and this row, pair or group cannot be split")
        del parts
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        budget.size = max(1, min(budget.size, failed) // 2)
        budget.announce(
            f"memory ran out on {failed} {budget.unit}; continues with {budget.size}, which does not change results"
        )
