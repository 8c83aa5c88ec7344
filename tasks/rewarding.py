"""What PPO, GRPO and iterative DPO maximise, samples with what they earned, and the learned score on its own."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from alignflow.data.collate import by_rows, collate
from alignflow.data.encoding import encode_prompt
from alignflow.generate import Response
from alignflow.models.roles import SharedBase
from alignflow.rewards import apply_rule
from alignflow.types import Example
from tasks import sampling, training
from tasks.params import Params

LEARNED = "reward_model"


@dataclass(frozen=True)
class Reward:
    """What one response earned."""

    total: float | None
    """Weighted sum of the sources that apply, less the missing end; None where none applies."""
    sources: Mapping[str, float | None]
    """Of each source, before its weight; None where it does not apply."""


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
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    responses: Sequence[Response],
    texts: Sequence[str],
    *,
    budget: int,
) -> list[Reward]:
    """Return what PPO, GRPO and iterative DPO maximise: the weighted sum of sources, less the missing end.

    A source that does not apply to a row adds nothing to it; a row to which none applies has no reward at all.

    Args:
        models: with the role ``reward_model``.
        params: weights and numbers of the sources.
        rows: prepared row of each response.
        examples: prompts with responses, as token ids.
        responses: as sampled.
        texts: of the responses.
        budget: most padded tokens of a forward pass.

    Raises:
        RuleFailed: a rule raised or gave no finite number.
        RewardError: the reward model gave no finite number.
    """
    keys = params.rewards
    weights = {name: numbers["weight"] for name, numbers in keys.rules.items()}
    sources: dict[str, list[float | None]] = {}
    if keys.reward_model:
        weights[LEARNED] = keys.reward_model
        sources[LEARNED] = [*learned_scores(models, examples, budget)]
        for value, row in zip(sources[LEARNED], rows, strict=True):
            if value is None or not math.isfinite(value):
                raise RewardError(f"the reward model gave {value} to a response to {row['prompt']!r}")
    for name, numbers in keys.rules.items():
        sources[name] = [
            apply_rule(name, row["prompt"], text, row["answer"], _own(numbers))
            for row, text in zip(rows, texts, strict=True)
        ]
    rewards = []
    for i, response in enumerate(responses):
        mine = {name: values[i] for name, values in sources.items()}
        earned = [weights[name] * value for name, value in mine.items() if value is not None]
        rewards.append(Reward(sum(earned) - keys.missing_eos_penalty * response.truncated if earned else None, mine))
    return rewards


class Sample(NamedTuple):
    """One sampled response with what it earned."""

    row: Mapping[str, Any]
    example: Example
    response: Response
    text: str
    reward: Reward


def sample(
    models: SharedBase, params: Params, rows: Sequence[Mapping[str, Any]], samples: int, *, seed: int, budget: int
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


def check_sources(params: Params, rows: Sequence[Mapping[str, Any]]) -> None:
    """Try the rules on the data's own responses before anything is sampled, if there is no learned score.

    Raises:
        RuleFailed: a rule raised or gave no finite number.
        RewardError: no rule applies to any row, so nothing could be trained.
    """
    if params.rewards.reward_model:
        return
    for name, numbers in params.rewards.rules.items():
        if any(
            apply_rule(name, row["prompt"], row["chosen"], row["answer"], _own(numbers)) is not None for row in rows
        ):
            return
    raise RewardError(
        f"no rule of params.yaml ({', '.join(params.rewards.rules)}) applies to any of {len(rows)} training rows; "
        "give the data an `answer`, or set rewards.reward_model above 0"
    )


def means(rewards: Sequence[Reward]) -> dict[str, float]:
    """Return ``score/mean``, and the mean of each source if there are several, over the rows they apply to."""
    columns = {"score/mean": [r.total for r in rewards]}
    if len(rewards[0].sources) > 1:
        columns |= {f"score/{name}": [r.sources[name] for r in rewards] for name in rewards[0].sources}
    applied = {name: [v for v in values if v is not None] for name, values in columns.items()}
    return {name: sum(values) / len(values) for name, values in applied.items() if values}


def _own(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return a rule's own numbers, without its weight."""
    return {key: value for key, value in numbers.items() if key != "weight"}


class RewardError(ValueError):
    """A response cannot be given a reward."""
