"""Save and load training states so that an interruption at any moment leaves the last good one."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

State = dict[str, Any]
Keep = Callable[[int, Callable[[], State]], None]
"""Receives an optimiser step and a function that returns the state there; decides whether to save it."""


def save(path: Path, state: State) -> None:
    """Write a state so that the path holds either the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(path: Path) -> State | None:
    """Return the saved state, or None where there is none."""
    if not path.exists():
        return None
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
