"""Responses that the policy in training samples, each with its reward."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignflow.data.encoding import encode_prompt
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.sampling.own import Response
from alignflow.types import Example
from tasks.params.sections import Params
from tasks.training import sampling
from tasks.training.rewards import Reward, reward


class Sample(NamedTuple):
    """One sampled response with what it earned."""

    row: Mapping[str, Any]
    example: Example
    response: Response
    text: str
    reward: Reward


def sample(
    models: SharedBase, params: Params, rows: Sequence[Mapping[str, Any]], samples: int, *, seed: int, budget: Budget
) -> list[Sample]:
    """Sample responses of the current policy to prepared rows, side by side, and reward them.

    Args:
        models: with the roles ``policy`` and ``reward_model``.
        params: sampling and rewards.
        rows: prepared rows, one a prompt.
        samples: responses a prompt.
        seed: of the sampling.
        budget: most padded tokens of a forward pass.
    """
    each = [row for row in rows for _ in range(samples)]
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in each]
    responses, texts = sampling.sample(models, "policy", prompts, params, seed=seed)
    examples = [Example(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
    rewards = reward(models, params, each, examples, responses, texts, budget=budget)
    return [Sample(*one) for one in zip(each, examples, responses, texts, rewards, strict=True)]
