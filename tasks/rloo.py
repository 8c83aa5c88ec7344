"""Stage ``rloo``: no critic; the other responses to the prompt give the baseline, the KL is in the reward."""

from collections.abc import Mapping

from alignflow.algorithms import rloo
from tasks.running.stage import Stage
from tasks.training.rollouts import open_roles, train_online


def work(stage: Stage) -> Mapping[str, float]:
    """Train the policy on groups of its own responses."""
    section = stage.params.rloo
    models = open_roles(stage.params)
    return train_online(stage, models, section, rloo.RLOOConfig, rloo.build, {"policy": section.learning_rate})
