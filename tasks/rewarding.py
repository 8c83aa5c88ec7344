"""What PPO, GRPO and iterative DPO maximise, and the learned score on its own."""

import json
import math
from collections.abc import Sequence

from alignflow.data.collate import by_rows, collate
from alignflow.generate import Response
from alignflow.models.roles import SharedBase
from alignflow.rewards import rule
from alignflow.types import Example
from tasks import training
from tasks.params import Params


def normalization() -> tuple[float, float]:
    """Return mean and deviation of the reward model's scores on responses of the reference."""
    content = json.loads((training.REWARD_MODEL / "normalization.json").read_text())
    return content["mean"], content["std"]


def learned_scores(models: SharedBase, examples: Sequence[Example], budget: int) -> list[float]:
    """Return the reward model's normalised score of each example."""
    mean, std = normalization()
    raw = by_rows(lambda batch: models.scores("reward_model", batch), collate(examples), budget)
    return [(value - mean) / std for value in raw.tolist()]


def reward(
    models: SharedBase,
    params: Params,
    prompts: Sequence[str],
    examples: Sequence[Example],
    responses: Sequence[Response],
    texts: Sequence[str],
    *,
    budget: int,
) -> list[float]:
    """Return what PPO, GRPO and iterative DPO maximise: the weighted sum of sources, less the missing end.

    Raises:
        ValueError: a source gives a number that is not finite.
    """
    weights = params.rewards
    total = [0.0] * len(examples)
    if weights.reward_model:
        total = [weights.reward_model * s for s in learned_scores(models, examples, budget)]
    for name, weight in weights.rules.items():
        function = rule(name)
        total = [t + weight * function(p, text) for t, p, text in zip(total, prompts, texts, strict=True)]
    total = [t - weights.missing_eos_penalty * r.truncated for t, r in zip(total, responses, strict=True)]
    for value, prompt in zip(total, prompts, strict=True):
        if not math.isfinite(value):
            raise RewardError(f"the reward of a response to {prompt!r} is {value}; look at the rules in params.yaml")
    return total


class RewardError(ValueError):
    """A reward is not a finite number."""
