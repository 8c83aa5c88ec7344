"""Turn answers and costs into the numbers that the table, the page and the metrics file show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignflow.comparison import Resampling, WinRate, win_rate
from tasks.evaluations import (
    REFERENCE,
    TITLES,
    Answer,
    Cost,
    Curve,
    read_answers,
    read_cost,
    read_curve,
    training_stages,
)


@dataclass(frozen=True)
class Outcome:
    """How one policy did on the held-out prompts, and what it cost."""

    policy: str
    score: WinRate
    """Against the reference, by the reward model."""
    gold: WinRate
    """Against the reference, by the independent judge."""
    score_mean: float
    gold_mean: float
    kl_reference: float
    response_length_mean: float
    truncated_fraction: float
    cost: Cost | None
    """None for a policy that was not trained here (base)."""

    @property
    def title(self) -> str:
        """The policy's name as a reader sees it."""
        return TITLES[self.policy]


@dataclass(frozen=True)
class Comparison:
    """Everything that the page and the tables are made of."""

    outcomes: Mapping[str, Outcome]
    answers: Mapping[str, tuple[Answer, ...]]
    """By policy; row i of every policy answers the same prompt."""
    curves: Mapping[str, Curve]
    resampling: Resampling

    @property
    def reference(self) -> Outcome:
        """The policy that all others are compared with."""
        return self.outcomes[REFERENCE]

    @property
    def candidates(self) -> tuple[Outcome, ...]:
        """The policies that were trained to beat the reference."""
        return tuple(o for o in self.outcomes.values() if o.cost and o.policy != REFERENCE)

    @property
    def compared(self) -> tuple[Outcome, ...]:
        """The reference and the candidates: the rows of ``reports/comparison.json``."""
        return (self.reference, *self.candidates)

    def head_to_head(self, policy: str, other: str) -> WinRate:
        """Compare two policies with each other, by the reward model."""
        return _win_rate(self.answers[policy], self.answers[other], "score", self.resampling)


def compare(root: Path, rounds: Sequence[str], resampling: Resampling) -> Comparison:
    """Read the stages' files under ``root`` and compare every policy with the reference.

    Raises:
        InputError: A file is missing, broken or does not fit the others.
    """
    stages = training_stages(rounds)
    answers = read_answers(root)
    return Comparison(
        outcomes={
            policy: _outcome(
                policy,
                rows,
                answers[REFERENCE],
                read_cost(root, stages[policy]) if policy in stages else None,
                resampling,
            )
            for policy, rows in answers.items()
        },
        answers=answers,
        curves={policy: read_curve(root, names) for policy, names in stages.items()},
        resampling=resampling,
    )


def values(rows: Sequence[Answer], judge: str) -> NDArray[np.float64]:
    """Return what one judge (``score`` or ``gold``) gave each answer, one value a prompt."""
    return np.array([getattr(row, judge) for row in rows], dtype=np.float64)


def row(outcome: Outcome) -> dict[str, str | float]:
    """Return the policy's entry in ``reports/comparison.json``; other tools rely on its keys."""
    assert outcome.cost is not None, outcome.policy
    return {
        "policy": outcome.policy,
        "win_rate": outcome.score.rate,
        "win_rate_low": outcome.score.interval.low,
        "win_rate_high": outcome.score.interval.high,
        "score_mean": outcome.score_mean,
        "gold_mean": outcome.gold_mean,
        "kl_reference": outcome.kl_reference,
        "response_length_mean": outcome.response_length_mean,
        "truncated_fraction": outcome.truncated_fraction,
        **outcome.cost.model_dump(),
    }


def metrics(comparison: Comparison) -> dict[str, float]:
    """Return the flat numbers of ``metrics/compare.json``, e.g. ``win_rate/dpo``."""
    flat: dict[str, float] = {}
    for outcome in comparison.candidates:
        numbers = {
            "win_rate": outcome.score.rate,
            "win_rate_low": outcome.score.interval.low,
            "win_rate_high": outcome.score.interval.high,
            "win_rate_p_value": outcome.score.p_value,
            "gold_win_rate": outcome.gold.rate,
            "gold_win_rate_low": outcome.gold.interval.low,
            "gold_win_rate_high": outcome.gold.interval.high,
            "score_mean": outcome.score_mean,
            "gold_mean": outcome.gold_mean,
            "kl_reference": outcome.kl_reference,
        }
        flat |= {f"{name}/{outcome.policy}": number for name, number in numbers.items()}
    return flat


def _outcome(
    policy: str,
    rows: Sequence[Answer],
    reference: Sequence[Answer],
    cost: Cost | None,
    resampling: Resampling,
) -> Outcome:
    return Outcome(
        policy=policy,
        score=_win_rate(rows, reference, "score", resampling),
        gold=_win_rate(rows, reference, "gold", resampling),
        score_mean=float(values(rows, "score").mean()),
        gold_mean=float(values(rows, "gold").mean()),
        kl_reference=float(np.mean([each.kl for each in rows])),
        response_length_mean=float(np.mean([each.response_length for each in rows])),
        truncated_fraction=float(np.mean([each.truncated for each in rows])),
        cost=cost,
    )


def _win_rate(rows: Sequence[Answer], reference: Sequence[Answer], judge: str, resampling: Resampling) -> WinRate:
    """Compare by one judge; equal texts tie, whatever rounding in another batch made of their scores."""
    same = np.array([a.response == b.response for a, b in zip(rows, reference, strict=True)])
    theirs = values(reference, judge)
    return win_rate(np.where(same, theirs, values(rows, judge)), theirs, resampling)
