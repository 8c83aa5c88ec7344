"""The answers of a policy as rows of a table, the points of its trajectory, and the figures of all answers."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from alignflow.evaluation.answers import distinct, language_drift, repetition
from alignflow.evaluation.language import languages
from alignflow.rules.shared.outcome import outcome
from tasks.evaluation.answer_files import PolicyAnswers
from tasks.evaluation.judging import AnswerScores
from tasks.params.sections import Evaluate


def table(answers: PolicyAnswers, scores: AnswerScores, section: Evaluate) -> list[dict[str, Any]]:
    """Return the answers with all that is known of them, a row an answer."""
    least = section.language_probability
    spoken = languages(answers.texts, least=least)
    asked = languages([row["prompt"] for row in answers.rows], least=least)
    return [
        {
            "prompt_id": row["prompt_id"],
            "sample": i % section.samples_per_prompt,
            "prompt": row["prompt"],
            "response": answers.texts[i],
            "score": scores.scores[i],
            "judges": {name: values[i] for name, values in scores.judges.items()},
            "kl": answers.kl[i],
            "response_length": len(answers.tokens[i]),
            "truncated": answers.truncated[i],
            "repetition": repetition(answers.texts[i]),
            "language": spoken[i],
            "prompt_language": asked[i],
            "outcome": None if row["answer"] is None else outcome(answers.texts[i], row["answer"]),
        }
        for i, row in enumerate(answers.rows)
    ]


def points(
    trajectory: Sequence[Mapping[str, Any]],
    answers: Sequence[PolicyAnswers],
    scores: Sequence[AnswerScores],
    *,
    count: int,
    samples: int,
) -> list[dict[str, Any]]:
    """Return the points of a trajectory: what the answers to the first prompts are worth, each prompt's mean.

    Args:
        trajectory: step and label of each point, the final policy last; it may be empty.
        answers: of the final policy first, then of each earlier snapshot in order.
        scores: of these answers.
        count: how many of the first answers count.
        samples: answers to each prompt.
    """

    def by_prompt(values: Sequence[float]) -> list[float]:
        return [fmean(values[start : start + samples]) for start in range(0, count, samples)]

    in_order = zip(trajectory, [*answers[1:], answers[0]], [*scores[1:], scores[0]], strict=False)
    return [
        {
            **point,
            "kl": by_prompt(answered.kl),
            "score": by_prompt(judged.scores),
            "judges": {name: by_prompt(values) for name, values in judged.judges.items()},
            "response_length": by_prompt(list(map(len, answered.tokens))),
        }
        for point, answered, judged in in_order
        if count
    ]


def flat(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with a column a judge, as the tracking server shows them."""
    return [
        {key: value for key, value in row.items() if key != "judges"}
        | {f"judge/{name}": value for name, value in row["judges"].items()}
        for row in rows
    ]


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the means over all answers, and what is a figure of all of them together."""
    texts = [row["response"] for row in rows]
    outcomes = [row["outcome"] for row in rows if row["outcome"] is not None]
    return {
        "score/mean": fmean(row["score"] for row in rows),
        **{f"judge/{name}/mean": fmean(row["judges"][name] for row in rows) for name in rows[0]["judges"]},
        "kl/reference": fmean(row["kl"] for row in rows),
        "response_length/mean": fmean(row["response_length"] for row in rows),
        "truncated_fraction": fmean(row["truncated"] for row in rows),
        "repetition/mean": fmean(row["repetition"] for row in rows),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "language_drift": language_drift([row["language"] for row in rows], [row["prompt_language"] for row in rows]),
        **{
            f"{name}_fraction": outcomes.count(name) / len(outcomes)
            for name in ("right", "abstain", "wrong")
            if outcomes
        },
    }
