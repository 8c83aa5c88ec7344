"""The records of a comparison: everything that the verdict, the page and the tables are made of."""

from collections.abc import Mapping
from dataclasses import dataclass

from alignflow.evaluation.cut_or_length import CutOrLength
from alignflow.evaluation.reliability import CommonErrors
from alignflow.evaluation.trajectories import EqualKl, Fall, Trajectory
from alignflow.evaluation.win_rates import Agreement, Mean, Rate, Resampling, WinRate
from tasks.comparison.read_evaluations import AnswersByPrompt, Quality
from tasks.comparison.read_trainings import Cost, Curve, RewardReport
from tasks.comparison.wording import TEST_SIDE, VALIDATION_SIDE
from tasks.judges import PROXY
from tasks.policies import REFERENCE, TITLES

TRAITS = ("kl", "response_length", "truncated", "repetition", "language_drift")
"""Figures of every single answer; ``language_drift`` where both languages are known."""


@dataclass(frozen=True)
class Method:
    """How the comparison is computed."""

    resampling: Resampling
    length_ridge: float
    """Of the length-controlled win rate."""
    kl_levels: int
    """At how many levels of KL algorithms are compared."""


@dataclass(frozen=True)
class AgainstReference:
    """How a policy's answers compare with the reference's, by judge, the proxy first.

    Of trained policies each test has Holm's correction over all of them, judge by judge.
    """

    rates: Mapping[str, WinRate]
    """Over all pairs of answers."""
    complete: Mapping[str, WinRate]
    """Over the pairs in which neither answer is cut off; a judge without such a pair is left out."""
    equal_length: Mapping[str, Rate]
    """Over the same pairs, at equal length."""
    predicted: Mapping[str, float]
    """Over all pairs, by a model that knows only "cut off or not" and length; empty without a trained policy."""


@dataclass(frozen=True)
class PolicyResult:
    """How one policy did on the held-out prompts, and what it cost."""

    policy: str
    against: AgainstReference
    means: Mapping[str, Mean]
    """Mean value of each judge."""
    traits: Mapping[str, Mean]
    """`TRAITS` of its answers."""
    changes: Mapping[str, Mean]
    """Of traits, and of shares on rule tasks, paired by prompt with the reference."""
    shares: Mapping[str, Mean]
    """Right, abstain and wrong; empty without questions whose answer is known."""
    quality: Quality
    cost: Cost | None
    """None for a policy that was not trained here (base)."""

    @property
    def title(self) -> str:
        """The policy's name as a reader sees it."""
        return TITLES[self.policy]

    @property
    def rates(self) -> Mapping[str, WinRate]:
        """Against the reference over all pairs of answers, by judge, the proxy first."""
        return self.against.rates

    @property
    def score(self) -> WinRate:
        """Against the reference, by the proxy."""
        return self.rates[PROXY]

    @property
    def judged(self) -> Mapping[str, WinRate]:
        """Against the reference, by each independent judge."""
        return {judge: rate for judge, rate in self.rates.items() if judge != PROXY}


@dataclass(frozen=True)
class PolicyTrajectory:
    """One policy along its training."""

    labels: tuple[str, ...]
    """Of the snapshots, the reference first."""
    path: Trajectory
    gains: Mapping[str, tuple[Mean, ...]]
    """Over the reference, by judge, a value a snapshot, paired by prompt."""
    falls: Mapping[str, Fall]
    """Over-optimisation, by the judge that shows it."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the page and the tables are made of."""

    results: Mapping[str, PolicyResult]
    """By policy, in the order of their table."""
    answers: Mapping[str, AnswersByPrompt]
    """By policy; entry i of every policy answers the same prompt."""
    judges: tuple[str, ...]
    """The proxy, then every independent judge but an LLM: these score a single answer."""
    round_robin: Mapping[str, Mapping[tuple[str, str], WinRate]]
    """By judge, the first policy of a pair against the second, with Holm's correction over all pairs."""
    agreements: Mapping[tuple[str, str], Agreement]
    """Between judges, over all trained policies' prompts."""
    cut_or_length: Mapping[str, CutOrLength]
    """By judge, the model behind `AgainstReference.predicted`."""
    trajectories: Mapping[str, PolicyTrajectory]
    """By policy, for those with snapshots."""
    equal_kl: Mapping[str, EqualKl]
    """By judge; empty when fewer than two policies have snapshots away from the reference."""
    reward_models: Mapping[str, RewardReport]
    """By judge, for those that are reward models."""
    common_errors: Mapping[tuple[str, str], CommonErrors]
    """Between these, on labelled pairs."""
    curves: Mapping[str, Curve]
    method: Method
    opened: str
    """How often the test side was opened, in words; empty where the prompts are those of the validation side."""

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies that are compared, in the order of their table."""
        return tuple(self.results)

    @property
    def reference(self) -> PolicyResult:
        """The policy that all others are compared with."""
        return self.results[REFERENCE]

    @property
    def candidates(self) -> tuple[PolicyResult, ...]:
        """The policies that were trained to beat the reference."""
        return tuple(o for o in self.results.values() if o.cost and o.policy != REFERENCE)

    @property
    def compared(self) -> tuple[PolicyResult, ...]:
        """The reference and the candidates: the rows of ``reports/comparison.json``."""
        return (self.reference, *self.candidates)

    @property
    def side(self) -> str:
        """Of the data whose prompts are answered, as a reader sees it."""
        return TEST_SIDE if self.opened else VALIDATION_SIDE

    @property
    def confidence(self) -> float:
        """Of all intervals and tests."""
        return self.method.resampling.confidence

    @property
    def rule_rows(self) -> int:
        """Prompts that are questions whose answer is known."""
        return sum(rows[0].outcome is not None for rows in self.answers[REFERENCE])

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return len(self.answers[REFERENCE][0])

    def head_to_head(self, policy: str, other: str, judge: str) -> WinRate:
        """Compare two policies with each other, in the order of the table of policies."""
        return self.round_robin[judge][policy, other]
