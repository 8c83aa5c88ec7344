"""What answers are worth: the reward that training maximised, and the independent judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignflow.data.encoding import encode_prompt
from alignflow.models.adapters import saved_shape
from alignflow.models.roles import SharedBase
from alignflow.types import Example
from tasks.evaluation.answer_files import PolicyAnswers
from tasks.evaluation.kept import Kept
from tasks.judges import learned
from tasks.params.sections import Params
from tasks.paths import REWARD_MODEL
from tasks.running.stage import Stage
from tasks.training import rewards
from tasks.training.models import open_models


@dataclass(frozen=True)
class AnswerScores:
    """What these answers are worth, one value a row."""

    scores: list[float]
    """What training maximised: the weighted sum of reward sources, without the missing end."""
    judges: dict[str, list[float]]
    """By independent judge."""


def open_scorers(params: Params) -> SharedBase:
    """Load the base with the reward models that score answers: the one of training where it counts, and judges."""
    models = open_models(params)
    add_scorers(models, params)
    return models


def add_scorers(models: SharedBase, params: Params) -> None:
    """Give the base what ``open_scorers`` loads with it."""
    if params.rewards.reward_model:
        models.add(rewards.LEARNED, start=REWARD_MODEL)
    for role, folder in learned().items():
        if rewards.is_trained(folder):
            models.add(role, start=folder, shape=saved_shape(folder))


def judge(
    stage: Stage, kept: Kept, models: SharedBase, policy: str, answers: Sequence[PolicyAnswers]
) -> list[AnswerScores]:
    """Return what all answers are worth: one pass of each scorer over all of them.

    Args:
        stage: the running stage.
        kept: results of the stage so far; judging goes on after them, scorer by scorer.
        models: of ``open_scorers``.
        policy: whose answers they are.
        answers: of the policy and its snapshots.
    """
    params = stage.params
    rows = [row for one in answers for row in one.rows]
    texts = [text for one in answers for text in one.texts]
    prompts = {row["prompt_id"]: encode_prompt(models.base.tokenizer, row["messages"]) for row in rows}
    examples = [
        Example(prompts[row["prompt_id"]], tokens)
        for one in answers
        for row, tokens in zip(one.rows, one.tokens, strict=True)
    ]
    budget = stage.budget("passes", params.reward_model.micro_batch_tokens)
    learned_values: dict[str, list[float]] = {}
    for role in models.heads:

        def score(role: str = role) -> list[float]:
            tell = stage.progress(f"{policy}: scores by {role}")
            return rewards.learned_scores(models, role, _scorers()[role], examples, budget, tell)

        learned_values[role] = kept.once(f"{policy}: {role}", score)
    sources = rewards.sources_beside(learned_values.pop(rewards.LEARNED, None), params, rows, texts)
    scores = [_score(params, row, mine) for row, mine in zip(rows, sources, strict=True)]
    judges = learned_values  # without that of training
    for rule in params.evaluate.judges:
        judges[rule] = [_rule(rule, row, text) for row, text in zip(rows, texts, strict=True)]
    result, start = [], 0
    for one in answers:
        mine = slice(start, start := start + len(one.rows))
        result.append(AnswerScores(scores[mine], {name: values[mine] for name, values in judges.items()}))
    return result


def _scorers() -> dict[str, Path]:
    """Return the folders of the reward models that score answers, by role."""
    return {rewards.LEARNED: REWARD_MODEL, **learned()}


def _score(params: Params, row: Mapping[str, Any], sources: Mapping[str, float | None]) -> float:
    score = rewards.weighted_sum(params, sources)
    if score is None:
        raise NoJudgement(
            f"no rule of rewards.rules applies to an answer to {row['prompt']!r}, although one did before"
        )
    return score


def _rule(rule: str, row: Mapping[str, Any], text: str) -> float:
    """Return what a rule gives an answer as a judge.

    Raises:
        NoJudgement: it does not apply to the row.
    """
    value = rewards.rule_value(rule, row, text, {})
    if value is None:
        raise NoJudgement(
            f"evaluate.judges: {rule} does not apply to {row['prompt']!r}; take a rule that judges every row"
        )
    return value


class NoJudgement(ValueError):
    """A judge leaves a row out."""
