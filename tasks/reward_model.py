"""Stage ``reward_model``: train the reward model that policies maximise in training."""

from collections.abc import Mapping

from tasks.running.stage import Stage
from tasks.training.reward_model import train_reward_model


def work(stage: Stage) -> Mapping[str, float]:
    """Train on the pairs of the training prompts."""
    return train_reward_model(stage, stage.params.reward_model, "train")
