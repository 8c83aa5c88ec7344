"""Stage ``judge_model``: a reward model from other prompts and another seed; it judges and is never maximised."""

from collections.abc import Mapping

from tasks.paths import REWARD_MODEL
from tasks.running.stage import Stage
from tasks.training.reward_model import train_reward_model


def work(stage: Stage) -> Mapping[str, float]:
    """Train on the pairs that no other stage learns from."""
    return train_reward_model(stage, stage.params.judge_model, "judge", other=REWARD_MODEL)
