"""Stage ``judge_model``: a reward model with its own prompts, seed, start and rank; it only judges."""

from collections.abc import Mapping

from tasks.paths import SFT
from tasks.running.stage import Stage
from tasks.training.models import adapter_shape
from tasks.training.reward_model import train_reward_model


def work(stage: Stage) -> Mapping[str, float]:
    """Train on the pairs that no other stage learns from."""
    section = stage.params.judge_model
    return train_reward_model(
        stage,
        section,
        "judge",
        start=SFT if section.start == "sft" else None,
        shape=adapter_shape(stage.params, section),
    )
