"""Stage ``ppo``: policy, reference, reward model and critic, all adapters over one base in memory."""

from collections.abc import Mapping

import torch

from alignflow.algorithms import ppo
from alignflow.models.roles import SharedBase
from tasks.params.sections import Params
from tasks.paths import REWARD_MODEL, SFT
from tasks.running.stage import Stage
from tasks.training.rewards import normalization
from tasks.training.rollouts import open_roles, train_online


def work(stage: Stage) -> Mapping[str, float]:
    """Train the policy and its critic."""
    section = stage.params.ppo
    models = open_roles(stage.params)
    add_critic(models, stage.params)
    rates = {"policy": section.learning_rate, "critic": section.critic_learning_rate}
    return train_online(stage, models, section, ppo.PPOConfig, ppo.build, rates)


def add_critic(models: SharedBase, params: Params) -> None:
    """Add the critic: it starts at weight × normalised score of the reward model; at 0 if only rules give the reward.

    What rules and a missing end will add to the reward is unknown before there are responses.
    """
    if params.rewards.reward_model:
        models.add("critic", start=REWARD_MODEL, trained=True)
        mean, std = normalization(REWARD_MODEL)
        models.standardize_head("critic", mean, std / params.rewards.reward_model)
    else:
        models.add("critic", start=SFT, trained=True)
        models.add_head("critic", weight=torch.zeros(1, models.base.model.config.hidden_size), bias=0.0)
