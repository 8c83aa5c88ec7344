"""Every test of the trained policies against the reference: what the verdict follows from."""

from collections.abc import Mapping, Sequence

import numpy as np

from alignflow.evaluation.cut_or_length import CutOrLength, JudgedPairs, cut_or_length
from alignflow.evaluation.length_control import length_controlled
from alignflow.evaluation.win_rates import Tested, corrected, rate_of
from tasks.comparison.results import AgainstReference, Method

ByPolicy = Mapping[str, Mapping[str, JudgedPairs]]
"""Pairs of answers of each policy and the reference, by judge."""


def models(pairs: ByPolicy, trained: Sequence[str], ridge: float) -> dict[str, CutOrLength]:
    """Return by judge what "cut off or not" and length predict, fitted over the pairs of all trained policies."""
    judges = dict.fromkeys(judge for policy in trained for judge in pairs[policy])
    return {
        judge: cut_or_length({policy: pairs[policy][judge] for policy in trained if judge in pairs[policy]}, ridge)
        for judge in judges
    }


def against_reference(
    pairs: ByPolicy, trained: Sequence[str], predictions: Mapping[str, CutOrLength], method: Method
) -> dict[str, AgainstReference]:
    """Test every policy over all pairs, over complete pairs, and over these at equal length.

    Length is controlled on complete pairs only: a cut-off answer has the greatest length of all, so on all pairs a
    cut-off would count as length. Holm's correction is applied to each test of each judge separately.
    """
    complete = {
        policy: {
            judge: np.where(each.complete, each.outcomes, np.nan)
            for judge, each in by_judge.items()
            if (each.complete & np.isfinite(each.outcomes)).any()
        }
        for policy, by_judge in pairs.items()
    }
    rates = {
        policy: {judge: rate_of(each.outcomes, method.resampling) for judge, each in by_judge.items()}
        for policy, by_judge in pairs.items()
    }
    among_complete = {
        policy: {judge: rate_of(each, method.resampling) for judge, each in by_judge.items()}
        for policy, by_judge in complete.items()
    }
    equal_length = {
        policy: {
            judge: length_controlled(each, pairs[policy][judge].extra, method.length_ridge, method.resampling)
            for judge, each in by_judge.items()
        }
        for policy, by_judge in complete.items()
    }
    rates, among_complete, equal_length = (
        corrected_by_judge(rates, trained),
        corrected_by_judge(among_complete, trained),
        corrected_by_judge(equal_length, trained),
    )
    return {
        policy: AgainstReference(
            rates=rates[policy],
            complete=among_complete[policy],
            equal_length=equal_length[policy],
            predicted={judge: model.rate(by_judge[judge]) for judge, model in predictions.items() if judge in by_judge},
        )
        for policy, by_judge in pairs.items()
    }


def corrected_by_judge(
    found: Mapping[str, Mapping[str, Tested]], trained: Sequence[str]
) -> dict[str, dict[str, Tested]]:
    """Return the rates with those of trained policies corrected as one family for each judge."""
    done = {policy: dict(by_judge) for policy, by_judge in found.items()}
    for judge in {judge for by_judge in done.values() for judge in by_judge}:
        family = corrected({policy: done[policy][judge] for policy in trained if judge in done[policy]})
        for policy, rate in family.items():
            done[policy][judge] = rate
    return done
