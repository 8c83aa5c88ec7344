"""Stage ``reward_model``: train the scorer that PPO, GRPO and iterative DPO maximise."""

from collections.abc import Mapping

from tasks.running.stage import Stage, run
from tasks.training.reward_model import train_reward_model


def work(stage: Stage) -> Mapping[str, float]:
    """Train on the pairs of the training prompts."""
    return train_reward_model(stage, stage.params.reward_model, "train")


if __name__ == "__main__":
    run(
        "reward_model",
        work,
        sections=["base", "lora", "memory", "sampling", "reward_model"],
        inputs=["artifacts/base", "artifacts/sft", "data/prepared"],
        outs=["artifacts/reward_model"],
        shared=True,
    )
