"""Stage ``grpo``: no critic; the baseline comes from the responses to the same prompt."""

from collections.abc import Mapping

from alignflow.algorithms import grpo
from tasks.running.stage import Stage
from tasks.training.rollouts import open_roles, train_online


def work(stage: Stage) -> Mapping[str, float]:
    """Train the policy on groups of its own responses."""
    section = stage.params.grpo
    models = open_roles(stage.params)
    return train_online(stage, models, section, grpo.GRPOConfig, grpo.build, {"policy": section.learning_rate})
