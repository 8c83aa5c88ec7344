"""What answers are worth: the reward that training maximised, and the independent judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignflow.memory import Budget
from alignflow.models.adapters import saved_shape
from alignflow.models.roles import SharedBase
from tasks.evaluation.answers import PolicyAnswers
from tasks.judges import learned
from tasks.params.sections import Params
from tasks.paths import REWARD_MODEL, SFT
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
    """Load the base with the reference and the scorers that judge."""
    models = open_models(params)
    models.add("reference", start=SFT)
    if params.rewards.reward_model:
        models.add("reward_model", start=REWARD_MODEL)
    for name, folder in learned().items():
        if rewards.is_trained(folder):
            models.add(name, start=folder, shape=saved_shape(folder))
    return models


def judge(params: Params, models: SharedBase, answers: Sequence[PolicyAnswers], budget: Budget) -> list[AnswerScores]:
    """Return what all answers are worth: one pass of each scorer over all of them."""
    rows = [row for one in answers for row in one.rows]
    texts = [text for one in answers for text in one.texts]
    examples = [example for one in answers for example in one.examples]
    sources = rewards.sources(models, params, rows, examples, texts, budget=budget)
    scores = [_score(params, row, mine) for row, mine in zip(rows, sources, strict=True)]
    judges = {
        name: rewards.learned_scores(models, name, folder, examples, budget)
        for name, folder in learned().items()
        if name in models.heads
    }
    for rule in params.evaluate.judges:
        judges[rule] = [_rule(rule, row, text) for row, text in zip(rows, texts, strict=True)]
    result, start = [], 0
    for one in answers:
        mine = slice(start, start := start + len(one.rows))
        result.append(AnswerScores(scores[mine], {name: values[mine] for name, values in judges.items()}))
    return result


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
