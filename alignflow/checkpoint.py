"""Save and load training states so that an interruption at any moment leaves the last good one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

State = dict[str, Any]
Keep = Callable[[int, Callable[[], State]], None]
"""Receives an optimiser step and a function that returns the state there; decides whether to save it."""


def save(path: Path, state: State) -> None:
    """Write a state as ``replace`` does."""
    replace(path, lambda file: torch.save(state, file))


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that the path holds either the old content or the new one, never a part, whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> State | None:
    """Return the saved state, or None where there is none."""
    if not path.exists():
        return None
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
