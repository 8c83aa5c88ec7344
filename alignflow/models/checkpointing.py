"""Gradient checkpointing: keep only the inputs of the decoder layers, and recompute the rest for the gradient.

Chen et al. 2016, arXiv:1604.06174. The library's own switch works in train mode, where dropout is on; and it would
compute again as the role that is active by then, not as the one whose gradient is wanted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from alignflow.models.load import UnsupportedModel


class CannotCheckpoint(UnsupportedModel):
    """The model does not say which of its layers can be computed again."""


def checkpoint_layers(model: Any) -> None:
    """Let every decoder layer of a causal language model keep its inputs alone while gradients are wanted.

    Call it before or after adapters are attached. Gradients stay as they are: the layers have no dropout (eval mode),
    and each is computed again with the adapters that were active in its forward pass.

    Raises:
        CannotCheckpoint: no layer of the model is of a known kind.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise CannotCheckpoint(f"{type(model).__name__} marks no layers that can be computed again for the gradient")
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
    """Return which adapter a layer adds, and whether it adds none."""
    return module._active_adapter, module._disable_adapters


@contextmanager
def _in_state(modules: Sequence[Any], states: Sequence[tuple[Any, bool]]) -> Iterator[None]:
    """Let adapted layers answer as they did; without PEFT's switches, which touch ``requires_grad`` too.

    Those must not run in a backward pass, which is adding up gradients of the same parameters.
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
