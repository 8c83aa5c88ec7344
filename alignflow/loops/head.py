"""Fit a reward model's head on the states of a frozen adapter, before or instead of training the adapter.

A head that starts at random lets the first steps spoil the adapter (Kumar et al. 2022, arXiv:2202.10054), and some
hundred pairs teach the few weights of a head more than the millions of an adapter. States are computed once, without
gradients, so this costs one forward pass over the pairs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignflow.algorithms import reward_model
from alignflow.data.collate import collate_pairs
from alignflow.loops.by_rows import by_rows
from alignflow.loops.offline import train
from alignflow.loops.order import rows_of_step
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.optim import MasterAdamW, OptimisationConfig
from alignflow.types import Pair


def last_states(models: SharedBase, role: str, pairs: Sequence[Pair], budget: Budget) -> Tensor:
    """Return what a role's head sees of the chosen and of the rejected responses. (2, pairs, H) float32"""
    width = models.base.model.config.hidden_size
    states = by_rows(lambda batch: models.last_states(role, batch), collate_pairs(pairs), budget, columns=width)
    return states.view(2, len(pairs), width)


def fit_head(
    head: torch.nn.Linear,
    states: Tensor,
    margins: Tensor,
    config: OptimisationConfig,
    loss: reward_model.RewardModelConfig,
) -> None:
    """Train a head in place on states of pairs.

    Args:
        head: H to 1.
        states: of chosen and rejected responses. (2, pairs, H)
        margins: as the data states them. (pairs,)
        config: with the head's own steps and learning rate.
        loss: of the reward model.
    """
    chosen, rejected = states

    def batches(step: int, _: int) -> list[reward_model.StatesBatch]:
        rows = rows_of_step(len(margins), config, step)
        return [reward_model.StatesBatch(chosen[rows], rejected[rows], margins[rows])]

    train(
        batches,
        reward_model.build_head(head, loss),
        MasterAdamW([(list(head.parameters()), config.learning_rate)], config.weight_decay, kind="adamw"),
        config,
        log=lambda *_: None,  # the fit has no curve worth a page
        announce=lambda _: None,
        keep=lambda *_: None,
    )
