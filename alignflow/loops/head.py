"""Trains a reward model's head on the states of a frozen adapter, before or instead of training the adapter.

With a randomly initialised head, the first steps distort the adapter's features (Kumar et al. 2022, arXiv:2202.10054).
And a few hundred pairs are enough for the few weights of a head, but not for the millions of an adapter. States are
computed once, without gradients, so the cost is one forward pass over the pairs.
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
    """Return the states that a role's head gets for the chosen and the rejected responses. (2, pairs, H) float32"""
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
    """Train a head in place on the states of pairs.

    Args:
        head: H to 1.
        states: states of chosen and rejected responses. (2, pairs, H)
        margins: margins of the data. (pairs,)
        config: settings with the head's steps and learning rate.
        loss: settings of the reward model's loss.
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
        log=lambda *_: None,  # no learning curve of this short training
        budget=Budget(config.micro_batch_tokens, lambda _: None),
        keep=lambda *_: None,
    )
