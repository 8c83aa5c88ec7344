"""Gradient checkpointing: stores only the inputs of the decoder layers, and recomputes the rest for the gradient.

Chen et al. 2016, arXiv:1604.06174. The library's own option needs train mode, where dropout is active; and it would
recompute with the role that is active during the backward pass, not with that of the forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from alignflow.models.load import UnsupportedModel


class CannotCheckpoint(UnsupportedModel):
    """The model does not mark layers that can be recomputed."""


def checkpoint_layers(model: Any) -> None:
    """Make every decoder layer of a causal language model store only its inputs when gradients are needed.

    It can be called before or after adapters are attached. Gradients do not change: the layers have no dropout (eval
    mode), and each is recomputed with the adapters that were active in its forward pass.

    Raises:
        CannotCheckpoint: no layer of the model is of a known kind.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise CannotCheckpoint(f"{type(model).__name__} marks no layers that can be recomputed for the gradient")
    for layer in layers:
        layer.forward = partial(_forward, layer, layer.forward)


def _forward(layer: Any, forward: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **keywords)
    adapted = _adapted(layer)
    states = [_state(module) for module in adapted]

    def run(*given: Any) -> Any:
        with _in_state(adapted, states):
            return forward(*given, **keywords)

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)


def _adapted(layer: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in layer.modules() if isinstance(module, BaseTunerLayer)]


def _state(module: Any) -> tuple[Any, bool]:
    """Return the active adapter of a layer, and whether adapters are disabled."""
    return module._active_adapter, module._disable_adapters


@contextmanager
def _in_state(modules: Sequence[Any], states: Sequence[tuple[Any, bool]]) -> Iterator[None]:
    """Make adapted layers compute as they did then; without PEFT's own methods, which also change ``requires_grad``.

    These must not run during a backward pass, which accumulates gradients of the same parameters.
    """
    before = [_state(module) for module in modules]
    try:
        _set(modules, states)
        yield
    finally:
        _set(modules, before)


def _set(modules: Sequence[Any], states: Sequence[tuple[Any, bool]]) -> None:
    for module, (adapter, disabled) in zip(modules, states, strict=True):
        module._active_adapter, module._disable_adapters = adapter, disabled
