"""AdamW with float32 master weights for parameters of any dtype, and the learning-rate schedule."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import Parameter

from alignflow.distributed import sum_gradients


@dataclass(frozen=True)
class OptimisationConfig:
    """Settings of the optimiser."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    micro_batch_tokens: int
    seed: int


def learning_rate_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Return the share of the peak rate at a step (from 0): linear warm-up, then cosine decay to a tenth."""
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


class Trainable(Protocol):
    """Models whose roles can be trained."""

    def parameters(self, role: str) -> list[Parameter]:
        """Return the parameters of a role's adapter and head."""
        ...


class MasterAdamW:
    """AdamW with float32 weights, for model parameters of any dtype.

    In bfloat16, rounding would lose small updates. So updates change a float32 master copy of each parameter,
    and the model gets the rounded values. With float32 parameters this is plain AdamW (Loshchilov & Hutter 2019).
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Parameter], float]], weight_decay: float, *, kind: str) -> None:
        """Take groups of parameters, each with its peak learning rate.

        Args:
            groups: parameters and peak learning rates.
            weight_decay: weight decay of all groups.
            kind: ``adamw``: moments in float32; ``adamw_8bit``: in 8 bits for tensors of 4,096 numbers or more
                (Dettmers et al. 2022, arXiv:2110.02861); ``paged_`` before either: moments may move to host memory.
        """
        self._pairs = [[(p, p.detach().float().clone()) for p in params] for params, _ in groups]
        self._peaks = [rate for _, rate in groups]
        self._adamw = _class_of(kind)(
            [
                {"params": [m for _, m in pairs], "lr": rate}
                for pairs, rate in zip(self._pairs, self._peaks, strict=True)
            ],
            weight_decay=weight_decay,
            betas=(0.9, 0.999),
            eps=1e-8,
        )

    def step(self, *, factor: float, max_grad_norm: float) -> float:
        """Sum gradients over all processes, clip each group's norm, update; return the total norm before clipping.

        Each group is clipped by its own norm, so that a critic's large loss does not shrink the policy's step. If the
        norm is not finite, no weight changes, and the caller stops the run.
        """
        pairs = [pair for group in self._pairs for pair in group]
        for parameter, master in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        sum_gradients([master for _, master in pairs])
        norms = [torch.nn.utils.clip_grad_norm_([m for _, m in group], max_grad_norm) for group in self._pairs]
        norm = math.hypot(*map(float, norms))
        if math.isfinite(norm):
            for group, peak in zip(self._adamw.param_groups, self._peaks, strict=True):
                group["lr"] = peak * factor
            self._adamw.step()
            with torch.no_grad():
                for parameter, master in pairs:
                    parameter.copy_(master)
        return norm

    def drop_gradients(self) -> None:
        """Drop the gradients that were accumulated since the last step."""
        for pairs in self._pairs:
            for parameter, _ in pairs:
                parameter.grad = None

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {
            "masters": [[m for _, m in pairs] for pairs in self._pairs],
            "adamw": self._adamw.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``: masters, moments and the model's compute copies."""
        self._adamw.load_state_dict(dict(state["adamw"]))
        with torch.no_grad():
            self._take_back_buffers()
            for pairs, masters in zip(self._pairs, state["masters"], strict=True):
                for (parameter, master), saved in zip(pairs, masters, strict=True):
                    master.copy_(saved)
                    parameter.copy_(saved)

    def _take_back_buffers(self) -> None:
        """Move moments to memory of the optimiser's own kind: what bitsandbytes loads is on the device, never paged."""
        for parameter, moments in self._adamw.state.items():
            for name in moments.keys() & {"state1", "state2"}:
                buffer = self._adamw.get_state_buffer(parameter, dtype=moments[name].dtype)
                moments[name] = buffer.copy_(moments[name])


def adamw(models: Trainable, rates: Mapping[str, float], *, weight_decay: float, kind: str) -> MasterAdamW:
    """Return the optimiser of the trained roles.

    Args:
        models: models with these roles.
        rates: peak learning rate by role.
        weight_decay: weight decay of all roles.
        kind: see ``MasterAdamW``.
    """
    return MasterAdamW([(models.parameters(role), rate) for role, rate in rates.items()], weight_decay, kind=kind)


def _class_of(kind: str) -> Any:
    if kind == "adamw":
        return torch.optim.AdamW
    from bitsandbytes import optim

    return {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }[kind]
