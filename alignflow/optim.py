"""AdamW on float32 master weights, with compute copies of another dtype in the model, and the schedule."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter

from alignflow.distributed import sum_gradients


@dataclass(frozen=True)
class OptimisationConfig:
    """How a stage optimises; documented in tasks/params/sections.py."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    micro_batch_tokens: int
    seed: int


def learning_rate_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Return the share of the peak rate at a step (from 0): linear warm-up, then cosine down to a tenth."""
    warmup = round(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


class MasterAdamW:
    """AdamW whose weights are float32, whatever the dtype of the parameters in the model.

    In bfloat16 a small update rounds to nothing; so the update happens on a float32 master of each parameter,
    and the model gets its rounded copy. With float32 parameters this is plain AdamW (Loshchilov & Hutter 2019).
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Parameter], float]], weight_decay: float, *, kind: str) -> None:
        """Take groups of parameters, each with its peak learning rate, and how the moments are kept.

        Args:
            groups: parameters and rates.
            weight_decay: of all of them.
            kind: ``adamw`` keeps the moments in float32; ``adamw_8bit`` of tensors from 4,096 numbers on in 8 bits
                (Dettmers et al. 2022, arXiv:2110.02861); ``paged_`` of either lets large ones leave a full GPU.
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
        """Sum gradients over all processes, clip each group's norm, update, and return the norm of all before clipping.

        Groups are clipped apart, so that a critic's large loss does not shrink the policy's step. A norm that is not
        finite changes nothing and is returned as it is; the caller stops the run.
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
        """Forget what was accumulated since the last step."""
        for pairs in self._pairs:
            for parameter, _ in pairs:
                parameter.grad = None

    def state(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "masters": [[m for _, m in pairs] for pairs in self._pairs],
            "adamw": self._adamw.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state()``: masters, moments and the model's compute copies."""
        self._adamw.load_state_dict(dict(state["adamw"]))
        with torch.no_grad():
            for pairs, masters in zip(self._pairs, state["masters"], strict=True):
                for (parameter, master), saved in zip(pairs, masters, strict=True):
                    master.copy_(saved)
                    parameter.copy_(saved)


def _class_of(kind: str) -> Any:
    if kind == "adamw":
        return torch.optim.AdamW
    from bitsandbytes import optim

    return {
        "adamw_8bit": optim.AdamW8bit,
        "paged_adamw": optim.PagedAdamW,
        "paged_adamw_8bit": optim.PagedAdamW8bit,
    }[kind]
