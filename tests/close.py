"""How close two numbers must be, for all tests."""

from typing import Any

import torch

EXACT, FLOAT64, FLOAT32, LOOSE = 0.0, 1e-10, 1e-5, 1e-3


def close(actual: Any, expected: Any, within: float = FLOAT32) -> None:
    """Check that all numbers agree to ``within``, relative to the largest expected one or to 1."""
    a, e = (torch.as_tensor(x, dtype=torch.float64).detach().cpu() for x in (actual, expected))
    assert a.shape == e.shape, f"shapes {tuple(a.shape)} and {tuple(e.shape)}"
    assert bool(a.isfinite().all()), f"not finite: {a}"
    if e.numel():
        error, scale = float((a - e).abs().max()), max(1.0, float(e.abs().max()))
        assert error <= within * scale, f"differ by {error:.3g}, allowed {within * scale:.3g}:\n{a}\n{e}"
