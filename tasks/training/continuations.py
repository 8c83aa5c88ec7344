"""Answers that the policy continues after some steps, each with the reward of the whole answer."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from alignflow.data.encoding import encode_prompt
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.sampling.own import Response
from alignflow.types import Example, Step
from tasks.data.prepared import read_prompts
from tasks.params.sections import Params
from tasks.running.stage import Stage
from tasks.training import sampling
from tasks.training.ends import eos_ids
from tasks.training.rewards import Reward, check_sources, judged_rows, reward


class Begun(NamedTuple):
    """A prompt with the steps that are kept of an answer."""

    row: Mapping[str, Any]
    steps: tuple[Step, ...]

    @property
    def prefix(self) -> tuple[int, ...]:
        """The tokens of the kept steps."""
        return tuple(token for step in self.steps for token in step)


def draw_states(stage: Stage, prompts: int, seed: int) -> list[Begun]:
    """Return training prompts to which a source of reward applies, drawn with a seed, before their first step."""
    read = read_prompts("train")
    check_sources(stage.params, read)
    rows = judged_rows(stage.params, read)
    return [Begun(row, ()) for row in random.Random(seed).sample(rows, min(prompts, len(rows)))]


class Continuation(NamedTuple):
    """What the policy wrote after a state."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    truncated: bool
    text: str
    """Of the whole answer."""
    reward: Reward
    """Of the whole answer."""


def extend(
    models: SharedBase, params: Params, states: Sequence[Begun], *, seed: int, budget: Budget
) -> list[Continuation]:
    """Sample one end of an answer after each state, and reward the whole answers.

    A whole answer is no longer than ``sampling.max_response_length``, wherever it is continued.

    Args:
        models: with the roles ``policy`` and ``reward_model``.
        params: sampling and rewards.
        states: repeat one for several samples; its keys and values are computed once.
        seed: of the sampling.
        budget: most padded tokens of a forward pass.
    """
    section, prefixes = params.sampling, [state.prefix for state in states]
    left = [section.max_response_length - len(prefix) for prefix in prefixes]
    prompts = [encode_prompt(models.base.tokenizer, state.row["messages"]) for state in states]
    asked = [prompt + prefix for prompt, prefix in zip(prompts, prefixes, strict=True)]
    drawn, _ = sampling.answer(
        models, "policy", asked, params, length=max(left), temperature=section.temperature, seed=seed
    )
    ends = [_within(response, most) for response, most in zip(drawn, left, strict=True)]
    whole = [Response(prefix + end.tokens, end.truncated, ()) for prefix, end in zip(prefixes, ends, strict=True)]
    texts = sampling.decode(models, whole)
    examples = [Example(prompt, one.tokens) for prompt, one in zip(prompts, whole, strict=True)]
    rewards = reward(models, params, [state.row for state in states], examples, whole, texts, budget=budget)
    return [
        Continuation(end.tokens, end.logprobs, end.truncated, text, earned)
        for end, text, earned in zip(ends, texts, rewards, strict=True)
    ]


def _within(response: Response, most: int) -> Response:
    if len(response.tokens) <= most:
        return response
    return Response(response.tokens[:most], True, response.logprobs[:most])


def step_texts(models: SharedBase, steps: Sequence[Step]) -> list[str]:
    """Return the texts of steps, white space included, without the token that ends the turn."""
    ends = set(eos_ids(models))
    tokens = [[token for token in step if token not in ends] for step in steps]
    texts: list[str] = models.base.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts
