"""The reward that policies maximise in training, samples with their rewards, and the learned score alone."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignflow.data.collate import collate
from alignflow.distributed import deal
from alignflow.loops.by_rows import by_rows
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.preferences import preferences, win_shares
from alignflow.rewards import apply_rule, rule_file
from alignflow.types import Example
from tasks.params.sections import Params
from tasks.paths import REWARD_MODEL, RULES
from tasks.training.ends import ended_as_in_data

if TYPE_CHECKING:
    from alignflow.sampling.own import Response

LEARNED = "reward_model"


@dataclass(frozen=True)
class Reward:
    """What one response earned."""

    total: float | None
    """Weighted sum of the sources that apply, less the penalty; None where none applies."""
    sources: Mapping[str, float | None]
    """Of each source, before its weight; None where it does not apply."""
    penalty: float = 0.0
    """Of a missing end."""


def normalization(folder: Path) -> tuple[float, float]:
    """Return mean and deviation of a reward model's scores on responses of the reference."""
    content = json.loads((folder / "normalization.json").read_text())
    return content["mean"], content["std"]


def is_trained(folder: Path) -> bool:
    """Return whether a reward model had pairs to learn from."""
    trained: bool = json.loads((folder / "normalization.json").read_text())["trained"]
    return trained


def learned_scores(
    models: SharedBase,
    role: str,
    folder: Path,
    examples: Sequence[Example],
    budget: Budget,
    tell: Callable[[float], None] | None = None,
) -> list[float]:
    """Return the normalised score that a role, loaded from a folder, gives each example, ended as in the data."""
    mean, std = normalization(folder)
    read = collate(ended_as_in_data(models, examples))
    raw = by_rows(lambda batch: models.scores(role, batch), read, budget, tell=tell)
    return [(value - mean) / std for value in raw.tolist()]


def reward(
    models: SharedBase,
    params: Params,
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    responses: Sequence["Response"],
    texts: Sequence[str],
    *,
    budget: Budget,
) -> list[Reward]:
    """Return what policies maximise in training: the weighted sum of sources, less the missing end.

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
    rewards = []
    for response, mine in zip(responses, sources(models, params, rows, examples, texts, budget=budget), strict=True):
        score, penalty = weighted_sum(params, mine), params.rewards.missing_eos_penalty * response.truncated
        rewards.append(Reward(None if score is None else score - penalty, mine, penalty))
    return rewards


def weighted_sum(params: Params, sources: Mapping[str, float | None]) -> float | None:
    """Return the weighted sum of the sources that apply to a response; None where none does."""
    weights = {LEARNED: params.rewards.reward_model}
    weights |= {name: numbers["weight"] for name, numbers in params.rewards.rules.items()}
    earned = [weights[name] * value for name, value in sources.items() if value is not None]
    return sum(earned) if earned else None


def within_groups(params: Params, totals: Sequence[float | None], samples: int) -> list[float | None]:
    """Return what methods that compare the responses to one prompt maximise: their rewards, or their shares of wins.

    Args:
        params: ``rewards.within_group`` and ``rewards.win_temperature``.
        totals: rewards, those of a prompt side by side.
        samples: responses a prompt.
    """
    if params.rewards.within_group == "score":
        return list(totals)
    groups = [totals[start : start + samples] for start in range(0, len(totals), samples)]
    return [share for group in groups for share in win_shares(preferences(group, params.rewards.win_temperature))]


def sources(
    models: SharedBase,
    params: Params,
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Example],
    texts: Sequence[str],
    *,
    budget: Budget,
) -> list[dict[str, float | None]]:
    """Return what each source of reward gives each response, before its weight; arguments and errors as ``reward``."""
    learned = None
    if params.rewards.reward_model:
        learned = learned_scores(models, LEARNED, REWARD_MODEL, examples, budget)
    return sources_beside(learned, params, rows, texts)


def sources_beside(
    learned: Sequence[float] | None, params: Params, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> list[dict[str, float | None]]:
    """Return what ``sources`` returns, from scores that the reward model gave before; None where it gives none."""
    columns: dict[str, list[float | None]] = {}
    if learned is not None:
        columns[LEARNED] = [*learned]
        for value, row in zip(learned, rows, strict=True):
            if not math.isfinite(value):
                raise RewardError(f"the reward model gave {value} to a response to {row['prompt']!r}")
    for name, numbers in params.rewards.rules.items():
        columns[name] = _rule_column(name, _own(numbers), rows, texts)
    return [{name: values[i] for name, values in columns.items()} for i in range(len(rows))]


def _rule_column(
    name: str, numbers: Mapping[str, float], rows: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> list[float | None]:
    """Return what a rule gives each response; of several processes one alone asks it, for a user's rule may vary."""

    def ask(places: Sequence[int]) -> list[float | None]:
        return [rule_value(name, rows[i], texts[i], numbers) for i in places]

    return deal(len(rows), ask)


def rule_value(name: str, row: Mapping[str, Any], text: str, numbers: Mapping[str, float]) -> float | None:
    """Return what a rule gives a response to a prepared row; None where it does not apply."""
    return apply_rule(rule_file(name, RULES), row["prompt"], text, row["answer"], numbers)


def check_sources(params: Params, rows: Sequence[Mapping[str, Any]]) -> None:
    """Look before anything is sampled whether the sources of reward can judge.

    Raises:
        RuleFailed: a rule raised or gave no finite number.
        RewardError: the reward model is asked for and untrained, or no rule applies to any row.
    """
    if params.rewards.reward_model and not is_trained(REWARD_MODEL):
        raise RewardError(
            f"rewards.reward_model is {params.rewards.reward_model}, but the data has no pairs to train a reward model "
            "on; give it rows with chosen and rejected, or set rewards.reward_model: 0 and a rule in rewards.rules"
        )
    if not judged_rows(params, rows):
        raise RewardError(
            f"no rule of params.yaml ({', '.join(params.rewards.rules)}) applies to any of {len(rows)} rows; "
            "give the data an `answer`, or set rewards.reward_model above 0"
        )


def judged_rows(params: Params, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows to which a source of reward applies, from the rules' results on the data's own responses."""
    if params.rewards.reward_model:
        return list(rows)
    return [
        row
        for row in rows
        if any(
            rule_value(name, row, row["chosen"] or "", _own(numbers)) is not None
            for name, numbers in params.rewards.rules.items()
        )
    ]


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
