"""Turn answers, snapshots and costs into everything that the verdict, the page and the tables are made of."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from operator import attrgetter
from pathlib import Path

import numpy as np

from alignflow.evaluation.cut_or_length import JudgedPairs
from alignflow.evaluation.reliability import common_errors
from alignflow.evaluation.trajectories import EqualKl, Trajectory, at_equal_kl, over_optimised
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
from tasks.comparison.against_reference import against_reference, models
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
from tasks.comparison.read_trainings import Cost, read_cost, read_curve, read_reward_report
from tasks.comparison.results import TRAITS, AgainstReference, Comparison, Method, PolicyResult, PolicyTrajectory
from tasks.judges import PROXY, Kind, in_order, judge_of, of_kind
from tasks.policies import REFERENCE, training_stages


def compare(
    root: Path,
    policies: Sequence[str],
    rounds: Sequence[str],
    method: Method,
    *,
    evaluated: Path | None = None,
    opened: str = "",
) -> Comparison:
    """Read the stages' files under ``root`` and compare every policy with the reference and with each other.

    Args:
        root: of the project.
        policies: which are compared, the reference among them, in the order of their table.
        rounds: of iterative DPO.
        method: how.
        evaluated: folder that holds the evaluations, if it is not the root.
        opened: how often the test side was opened, if these are its prompts.

    Raises:
        InputError: A file is missing, broken or does not fit the others.
    """
    evaluated = evaluated or root
    stages = training_stages(policies, rounds)
    answers, against = read_pairs(evaluated, policies)
    judges = in_order([PROXY, *answers[REFERENCE][0][0].judges])
    trained = [policy for policy in stages if policy != REFERENCE]
    explanations = models(against, trained, method.length_ridge)
    compared = against_reference(against, trained, explanations, method)
    reports = {judge: read_reward_report(root, folder) for judge in judges if (folder := judge_of(judge).folder)}
    trajectories = {
        policy: _trajectory(labels, path, judges, method.resampling)
        for policy, (labels, path) in read_trajectories(evaluated, trained, answers[REFERENCE]).items()
    }
    return Comparison(
        results={
            policy: _result(
                policy,
                rows,
                answers[REFERENCE],
                compared[policy],
                read_quality(evaluated, policy),
                read_cost(root, stages[policy]) if policy in stages else None,
                method,
            )
            for policy, rows in answers.items()
        },
        answers=answers,
        judges=judges,
        round_robin={judge: _round_robin(answers, judge, method.resampling) for judge in judges},
        agreements=_agreements(against, trained),
        cut_or_length=explanations,
        trajectories=trajectories,
        equal_kl=_equal_kl(trajectories, judges, method),
        reward_models=reports,
        common_errors={
            (one, other): common_errors(reports[one].margins, reports[other].margins)
            for one, other in combinations(reports, 2)
            if reports[one].pairs and reports[one].pairs == reports[other].pairs
        },
        curves={policy: read_curve(root, names) for policy, names in stages.items()},
        method=method,
        opened=opened,
    )


def read_pairs(
    root: Path, policies: Sequence[str]
) -> tuple[dict[str, AnswersByPrompt], dict[str, dict[str, JudgedPairs]]]:
    """Read the policies' answers; return them, and by policy and judge their pairs with the reference's.

    Raises:
        InputError: A file is missing, broken or does not fit the others.
    """
    answers = read_answers(root, policies)
    reference = answers[REFERENCE]
    judges = in_order([PROXY, *reference[0][0].judges])
    prompt_ids = [rows[0].prompt_id for rows in reference]
    asked = {name: read_judgements(root, name, policies, prompt_ids) for name in of_kind(Kind.LLM)}
    pairs = {
        policy: judged_pairs(
            rows, reference, judges, {name: each[policy] for name, each in asked.items() if policy in each}
        )
        for policy, rows in answers.items()
    }
    return answers, pairs


def values(answers: AnswersByPrompt, judge: str) -> Floats:
    """Return the values that one judge gave the answers. (P, k)"""
    return _each(answers, lambda row: row.score if judge == PROXY else row.judges[judge])


def _each(answers: AnswersByPrompt, read: Callable[[Answer], float]) -> Floats:
    """Return a value of each answer. (P, k)"""
    return np.array([[read(row) for row in rows] for rows in answers], dtype=np.float64)


def _outcomes(answers: AnswersByPrompt, others: AnswersByPrompt, judge: str) -> Floats:
    """Compare every pair of answers to each prompt by one judge; equal texts tie, however they were rounded.

    (P, pairs), the pair of both first answers first.
    """
    each = outcomes(values(answers, judge), values(others, judge))
    same = [
        [[a.response == b.response for b in theirs] for a in mine] for mine, theirs in zip(answers, others, strict=True)
    ]
    return np.where(same, 0.5, each).reshape(len(each), -1)


def _differences(answers: AnswersByPrompt, others: AnswersByPrompt, name: str) -> Floats:
    """Return a value of the first answer of each pair minus the second's, in the order of `_outcomes`. (P, pairs)"""
    mine, theirs = (_each(each, attrgetter(name)) for each in (answers, others))
    return (mine[:, :, None] - theirs[:, None, :]).reshape(len(mine), -1)


def judged_pairs(
    answers: AnswersByPrompt, reference: AnswersByPrompt, judges: Sequence[str], asked: Mapping[str, Floats]
) -> dict[str, JudgedPairs]:
    """Return by judge the pairs of a policy's answers and the reference's that it sees.

    Args:
        answers: of the policy.
        reference: answers of the reference.
        judges: that score every answer.
        asked: outcomes of judges that see the first pair of each prompt only. (P, 1)
    """
    mine, theirs = (~_each(each, attrgetter("truncated")).astype(bool) for each in (answers, reference))
    complete = (mine[:, :, None] & theirs[:, None, :]).reshape(len(mine), -1)
    cut, extra = (_differences(answers, reference, name) for name in ("truncated", "response_length"))
    outcomes = {judge: _outcomes(answers, reference, judge) for judge in judges} | dict(asked)
    return {
        judge: JudgedPairs(each, cut[:, :seen], extra[:, :seen], complete[:, :seen])
        for judge, each in outcomes.items()
        for seen in (each.shape[1],)
    }


def _round_robin(
    answers: Mapping[str, AnswersByPrompt], judge: str, resampling: Resampling
) -> dict[tuple[str, str], WinRate]:
    """Compare every policy with every other by one judge, each pair in both directions."""
    there = {(one, other): _outcomes(answers[one], answers[other], judge) for one, other in combinations(answers, 2)}
    met = {f"{one} {other}": rate_of(each, resampling) for (one, other), each in there.items()}
    back = {f"{one} {other}": rate_of(1 - each, resampling) for (one, other), each in there.items()}
    there_rates, back_rates = corrected(met), corrected(back)
    found = {}
    for one, other in there:
        found[one, other] = there_rates[f"{one} {other}"]
        found[other, one] = back_rates[f"{one} {other}"]
    return found


def _agreements(
    against: Mapping[str, Mapping[str, JudgedPairs]], trained: Sequence[str]
) -> dict[tuple[str, str], Agreement]:
    names = list(dict.fromkeys(judge for policy in trained for judge in against[policy]))
    found = {}
    for one, other in combinations(names, 2):
        both = [
            (against[p][one].outcomes, against[p][other].outcomes) for p in trained if {one, other} <= against[p].keys()
        ]
        # an LLM sees only the first pair of each prompt
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
    """Return for each outcome its share of the answers to each question; empty without questions. (questions,) each"""
    ends = [[str(row.outcome) for row in rows] for rows in answers if rows[0].outcome]
    return {name: np.array([mine.count(name) / len(mine) for mine in ends]) for name in OUTCOMES} if ends else {}


def _means(each: Mapping[str, Floats], resampling: Resampling) -> dict[str, Mean]:
    """Return the mean of each quantity over the prompts that have a value; quantities without any are left out."""
    known = {name: array[np.isfinite(array)] for name, array in each.items()}
    return {name: mean(array, resampling) for name, array in known.items() if array.size}


def _result(
    policy: str,
    answers: AnswersByPrompt,
    reference: AnswersByPrompt,
    against: AgainstReference,
    quality: Quality,
    cost: Cost | None,
    method: Method,
) -> PolicyResult:
    traits, before = _traits(answers), _traits(reference)
    paired = {name: traits[name] - before[name] for name in TRAITS} | {
        name: share - other
        for (name, share), other in zip(_shares(answers).items(), _shares(reference).values(), strict=True)
    }
    return PolicyResult(
        policy=policy,
        against=against,
        means=_means(
            {judge: values(answers, judge).mean(1) for judge in against.rates if judge_of(judge).kind is not Kind.LLM},
            method.resampling,
        ),
        traits=_means(traits, method.resampling),
        changes=_means(paired, method.resampling),
        shares=_means(_shares(answers), method.resampling),
        quality=quality,
        cost=cost,
    )
