"""Turn answers, snapshots and costs into everything that the verdict, the page and the tables are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from operator import attrgetter
from pathlib import Path

import numpy as np

from alignflow.evaluation.length_control import length_controlled
from alignflow.evaluation.trajectories import EqualKl, Fall, Trajectory, at_equal_kl, over_optimised
from alignflow.evaluation.win_rates import (
    Agreement,
    Floats,
    Mean,
    Resampling,
    WinRate,
    agreement,
    corrected,
    mean,
    outcomes,
    rate_of,
)
from tasks.comparison.read_evaluations import (
    OUTCOMES,
    Answer,
    AnswersByPrompt,
    Quality,
    read_answers,
    read_judgements,
    read_quality,
    read_trajectories,
)
from tasks.comparison.read_trainings import Cost, Curve, RewardReport, read_cost, read_curve, read_reward_report
from tasks.policies import POLICIES, REFERENCE, TITLES, training_stages

PROXY = "score"
"""The judge that training maximised; every other one is independent of it."""
JUDGE_MODEL = "judge_model"
LLM = "llm"
JUDGE_TITLES = {PROXY: "training reward", JUDGE_MODEL: "second reward model", LLM: "LLM judge"}


@dataclass(frozen=True)
class Method:
    """How the comparison is computed."""

    resampling: Resampling
    length_ridge: float
    """Of the length-controlled win rate."""
    kl_levels: int
    """At how many levels of KL algorithms are compared."""


@dataclass(frozen=True)
class PolicyResult:
    """How one policy did on the held-out prompts, and what it cost."""

    policy: str
    rates: Mapping[str, WinRate]
    """Against the reference, by judge, the proxy first; of trained policies with Holm's correction over all of
    them, judge by judge."""
    equal_length: Mapping[str, Mean]
    """Length-controlled win rate against the reference, by judge."""
    means: Mapping[str, Mean]
    """What each judge gave."""
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
    answers: Mapping[str, AnswersByPrompt]
    """By policy; entry i of every policy answers the same prompt."""
    judges: tuple[str, ...]
    """The proxy, then every independent judge but an LLM: those that score a single answer."""
    round_robin: Mapping[str, Mapping[tuple[str, str], WinRate]]
    """By judge, the first policy of a pair against the second, with Holm's correction over all pairs."""
    agreements: Mapping[tuple[str, str], Agreement]
    """Between judges, over all trained policies' prompts."""
    trajectories: Mapping[str, PolicyTrajectory]
    """By policy, those that left snapshots."""
    equal_kl: Mapping[str, EqualKl]
    """By judge; empty when fewer than two policies left snapshots away from the reference."""
    reward_models: Mapping[str, RewardReport]
    curves: Mapping[str, Curve]
    method: Method

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


TRAITS = ("kl", "response_length", "truncated", "repetition", "language_drift")
"""What is read off every single answer; ``language_drift`` where both languages are known."""


def judge_title(judge: str) -> str:
    """Return a judge's name as a reader sees it."""
    return JUDGE_TITLES.get(judge, f"rule {judge}")


def compare(root: Path, rounds: Sequence[str], method: Method) -> Comparison:
    """Read the stages' files under ``root`` and compare every policy with the reference and with each other.

    Raises:
        InputError: A file is missing, broken or does not fit the others.
    """
    stages = training_stages(rounds)
    answers = read_answers(root)
    judges = (PROXY, *sorted(answers[REFERENCE][0][0].judges, key=lambda name: name != JUDGE_MODEL))
    llm = read_judgements(root, [rows[0].prompt_id for rows in answers[REFERENCE]])
    against = {
        policy: {judge: _outcomes(rows, answers[REFERENCE], judge) for judge in judges}
        | ({LLM: llm[policy]} if policy in llm else {})
        for policy, rows in answers.items()
    }
    trained = [policy for policy in stages if policy != REFERENCE]
    rates = _rates(against, trained, method.resampling)
    trajectories = {
        policy: _trajectory(labels, path, judges, method.resampling)
        for policy, (labels, path) in read_trajectories(root, trained, answers[REFERENCE]).items()
    }
    return Comparison(
        results={
            policy: _result(
                policy,
                rows,
                answers[REFERENCE],
                rates[policy],
                against[policy],
                read_quality(root, policy),
                read_cost(root, stages[policy]) if policy in stages else None,
                method,
            )
            for policy, rows in answers.items()
        },
        answers=answers,
        judges=judges,
        round_robin={judge: _round_robin(answers, judge, method.resampling) for judge in judges},
        agreements=_agreements(against, trained),
        trajectories=trajectories,
        equal_kl=_equal_kl(trajectories, judges, method),
        reward_models={
            name: read_reward_report(root, name)
            for name in ("reward_model", *([JUDGE_MODEL] if JUDGE_MODEL in judges else []))
        },
        curves={policy: read_curve(root, names) for policy, names in stages.items()},
        method=method,
    )


def values(answers: AnswersByPrompt, judge: str) -> Floats:
    """Return what one judge gave each answer. (P, k)"""
    return _each(answers, lambda row: row.score if judge == PROXY else row.judges[judge])


def _each(answers: AnswersByPrompt, read: Callable[[Answer], float]) -> Floats:
    """Return a value of each answer. (P, k)"""
    return np.array([[read(row) for row in rows] for rows in answers], dtype=np.float64)


def _outcomes(answers: AnswersByPrompt, others: AnswersByPrompt, judge: str) -> Floats:
    """Compare by one judge every pair of answers to each prompt; equal texts tie, however their batches rounded.

    (P, pairs), the pair of both first answers first.
    """
    each = outcomes(values(answers, judge), values(others, judge))
    same = [
        [[a.response == b.response for b in theirs] for a in mine] for mine, theirs in zip(answers, others, strict=True)
    ]
    return np.where(same, 0.5, each).reshape(len(each), -1)


def _longer(answers: AnswersByPrompt, others: AnswersByPrompt) -> Floats:
    """Return by how many tokens the first answer of each pair is longer, in the order of `_outcomes`. (P, pairs)"""
    mine, theirs = (_each(each, attrgetter("response_length")) for each in (answers, others))
    return (mine[:, :, None] - theirs[:, None, :]).reshape(len(mine), -1)


def _asked(each: Floats) -> Floats:
    """Return the prompts that a judge was asked about."""
    return each[np.isfinite(each).all(1)]


def _rates(
    against: Mapping[str, Mapping[str, Floats]], trained: Sequence[str], resampling: Resampling
) -> dict[str, dict[str, WinRate]]:
    """Return each policy's win rates by judge, those of trained policies corrected as one family a judge."""
    rates = {
        policy: {judge: rate_of(_asked(each), resampling) for judge, each in by_judge.items()}
        for policy, by_judge in against.items()
    }
    for judge in {judge for by_judge in rates.values() for judge in by_judge}:
        family = corrected({policy: rates[policy][judge] for policy in trained if judge in rates[policy]})
        for policy, rate in family.items():
            rates[policy][judge] = rate
    return rates


def _round_robin(
    answers: Mapping[str, AnswersByPrompt], judge: str, resampling: Resampling
) -> dict[tuple[str, str], WinRate]:
    """Compare every policy with every other by one judge; a pair stands in both directions."""
    there = {(one, other): _outcomes(answers[one], answers[other], judge) for one, other in combinations(POLICIES, 2)}
    met = {f"{one} {other}": rate_of(each, resampling) for (one, other), each in there.items()}
    back = {f"{one} {other}": rate_of(1 - each, resampling) for (one, other), each in there.items()}
    there_rates, back_rates = corrected(met), corrected(back)
    found = {}
    for one, other in there:
        found[one, other] = there_rates[f"{one} {other}"]
        found[other, one] = back_rates[f"{one} {other}"]
    return found


def _agreements(
    against: Mapping[str, Mapping[str, Floats]], trained: Sequence[str]
) -> dict[tuple[str, str], Agreement]:
    names = list(dict.fromkeys(judge for policy in trained for judge in against[policy]))
    found = {}
    for one, other in combinations(names, 2):
        both = [(against[p][one], against[p][other]) for p in trained if {one, other} <= against[p].keys()]
        # an LLM sees the first pair of each prompt alone
        pairs = [np.stack([each[:, : min(a.shape[1], b.shape[1])].ravel() for each in (a, b)]) for a, b in both]
        known = np.concatenate(pairs, axis=1)
        known = known[:, np.isfinite(known).all(0)]
        if known.size:
            found[one, other] = agreement(*known)
    return found


def _trajectory(
    labels: tuple[str, ...], path: Trajectory, judges: Sequence[str], resampling: Resampling
) -> PolicyTrajectory:
    falls = {judge: over_optimised(path, PROXY, judge, resampling) for judge in judges if judge != PROXY}
    return PolicyTrajectory(
        labels=labels,
        path=path,
        gains={judge: tuple(mean(v - each[0], resampling) for v in each) for judge, each in path.values.items()},
        falls={judge: fall for judge, fall in falls.items() if fall},
    )


def _equal_kl(
    trajectories: Mapping[str, PolicyTrajectory], judges: Sequence[str], method: Method
) -> dict[str, EqualKl]:
    paths = {policy: each.path for policy, each in trajectories.items()}
    found = {judge: at_equal_kl(paths, judge, method.kl_levels, method.resampling) for judge in judges}
    return {judge: each for judge, each in found.items() if each}


def _traits(answers: AnswersByPrompt) -> dict[str, Floats]:
    """Return for each of `TRAITS` the mean over each prompt's answers, NaN where it is not known. (P,) each"""
    read = {name: _each(answers, attrgetter(name)).mean(1) for name in TRAITS[:-1]}
    drifted = [[row.drifted for row in rows if row.drifted is not None] for rows in answers]
    return read | {TRAITS[-1]: np.array([np.mean(known) if known else np.nan for known in drifted])}


def _shares(answers: AnswersByPrompt) -> dict[str, Floats]:
    """Return which share of each rule task's answers ended that way; empty without such prompts. (questions,) each"""
    ends = [[str(row.outcome) for row in rows] for rows in answers if rows[0].outcome]
    return {name: np.array([mine.count(name) / len(mine) for mine in ends]) for name in OUTCOMES} if ends else {}


def _means(each: Mapping[str, Floats], resampling: Resampling) -> dict[str, Mean]:
    """Return means over the prompts where there is a value, of what has any."""
    known = {name: array[np.isfinite(array)] for name, array in each.items()}
    return {name: mean(array, resampling) for name, array in known.items() if array.size}


def _result(
    policy: str,
    answers: AnswersByPrompt,
    reference: AnswersByPrompt,
    rates: Mapping[str, WinRate],
    against: Mapping[str, Floats],
    quality: Quality,
    cost: Cost | None,
    method: Method,
) -> PolicyResult:
    traits, before = _traits(answers), _traits(reference)
    extra = _longer(answers, reference)
    paired = {name: traits[name] - before[name] for name in TRAITS} | {
        name: share - other
        for (name, share), other in zip(_shares(answers).items(), _shares(reference).values(), strict=True)
    }
    return PolicyResult(
        policy=policy,
        rates=rates,
        equal_length={
            judge: length_controlled(
                _asked(each).mean(1),
                extra[np.isfinite(each).all(1), : each.shape[1]].mean(1),
                method.length_ridge,
                method.resampling,
            )
            for judge, each in against.items()
        },
        means=_means({judge: values(answers, judge).mean(1) for judge in against if judge != LLM}, method.resampling),
        traits=_means(traits, method.resampling),
        changes=_means(paired, method.resampling),
        shares=_means(_shares(answers), method.resampling),
        quality=quality,
        cost=cost,
    )
