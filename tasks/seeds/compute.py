"""The comparison over several training seeds: what holds for other seeds and other prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

from alignflow.evaluation.cut_or_length import JudgedPairs
from alignflow.evaluation.seeds import FEWEST, OverSeeds, of_seeds, over_seeds
from alignflow.evaluation.win_rates import Interval, Tested
from tasks.comparison.against_reference import against_reference, corrected_by_judge, models
from tasks.comparison.compute import read_pairs
from tasks.comparison.inputs import InputError, Share, listed
from tasks.comparison.reports import method_of
from tasks.comparison.results import AgainstReference
from tasks.comparison.verdict import Standing, standing
from tasks.judges import PROXY
from tasks.params.read import load
from tasks.params.seeds import training_seeds
from tasks.policies import POLICIES, REFERENCE, TITLES, in_order

TOO_FEW = f"not settled: fewer than {FEWEST} seeds"
NO_DIFFERENCE = "no difference"


@dataclass(frozen=True)
class PolicyOverSeeds:
    """How one policy did with every seed."""

    policy: str
    against: AgainstReference
    """Over all seeds: each rate is the mean over seeds, its interval and its test contain seeds and prompts; counts
    and predictions are of all seeds' answers together."""
    by_seed: Mapping[str, tuple[float, ...]]
    """Win rates over all pairs by judge, a value a seed."""
    standing: str
    better: int
    """Seeds whose own comparison calls it better."""

    @property
    def title(self) -> str:
        """The policy's name as a reader sees it."""
        return TITLES[self.policy]


@dataclass(frozen=True)
class SeedsComparison:
    """The comparison over seeds."""

    policies: tuple[PolicyOverSeeds, ...]
    """Those that depend on a seed, in the order of their table."""
    seeds: tuple[Mapping[str, int], ...]
    """The seeds that vary, by key, one entry a run."""
    prompts: int
    confidence: float
    margin: float

    @property
    def judges(self) -> tuple[str, ...]:
        """The judges that saw every policy with every seed, the proxy first."""
        return tuple(self.policies[0].by_seed) if self.policies else ()

    @property
    def better(self) -> tuple[PolicyOverSeeds, ...]:
        """The policies that are better over all seeds."""
        return tuple(each for each in self.policies if each.standing == Standing.BETTER.value)


class SeedRate(BaseModel):
    """A win rate in ``reports/comparison.json``."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    win_rate: Share


class SeedMean(BaseModel):
    """A mean there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    value: Share


class SeedJudge(SeedRate):
    """What one judge says there."""

    complete: SeedRate | None
    length_controlled: SeedMean | None


class SeedRow(BaseModel):
    """A policy there; further keys are left for other readers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    policy: str
    standing: str
    judges: dict[str, SeedJudge]


def compare_seeds(roots: Sequence[Path]) -> SeedsComparison:
    """Compare over the runs of several seeds.

    All seeds' answers to a prompt are taken together for what prompts show, and the rates that each seed's own
    comparison reports for what seeds show.

    Args:
        roots: of each seed's run: its settings, evaluations and reports.

    Raises:
        InputError: a file is missing, broken or does not fit the others.
    """
    settings = [load(root / "params.yaml") for root in roots]
    method, policies = method_of(settings[0]), in_order(settings[0].policies)
    trained = [policy for policy in policies if POLICIES[policy].learns]
    reported = [_reported(root) for root in roots]
    read = [read_pairs(root, policies) for root in roots]
    prompts = [[rows[0].prompt_id for rows in answers[REFERENCE]] for answers, _ in read]
    for root, ids in zip(roots, prompts, strict=True):
        if ids != prompts[0]:
            raise InputError(f"{root}: other prompts were evaluated than in {roots[0]}")
    pairs = {policy: [by_policy[policy] for _, by_policy in read] for policy in trained}
    rows = {policy: [each[policy] for each in reported] for policy in trained}
    together = {policy: _together(each) for policy, each in pairs.items()}
    compared = against_reference(together, trained, models(together, trained, method.length_ridge), method)
    confidence = method.resampling.confidence
    found = _corrected({policy: _over_seeds(compared[policy], rows[policy], confidence) for policy in trained})
    return SeedsComparison(
        policies=tuple(
            PolicyOverSeeds(
                policy=policy,
                against=found[policy],
                by_seed={
                    judge: tuple(row.judges[judge].win_rate for row in rows[policy]) for judge in found[policy].rates
                },
                standing=_standing(
                    found[policy],
                    pairs[policy],
                    equal=_equal(compared[policy], rows[policy], confidence, settings[0].seeds.margin),
                    confidence=confidence,
                ),
                better=sum(row.standing == Standing.BETTER.value for row in rows[policy]),
            )
            for policy in trained
        ),
        seeds=tuple(training_seeds(each) for each in settings),
        prompts=len(prompts[0]),
        confidence=confidence,
        margin=settings[0].seeds.margin,
    )


def _reported(root: Path) -> dict[str, SeedRow]:
    return {row.policy: row for row in listed(root / "reports" / "comparison.json", "compare", SeedRow)}


def _together(seeds: Sequence[Mapping[str, JudgedPairs]]) -> dict[str, JudgedPairs]:
    """Join the pairs of all seeds: more pairs of the same prompts; judges that did not see every seed are left out."""
    common = [judge for judge in seeds[0] if all(judge in each for each in seeds)]
    return {
        judge: JudgedPairs(
            *(
                np.concatenate([getattr(each[judge], name) for each in seeds], axis=1)
                for name in ("outcomes", "cut", "extra", "complete")
            )
        )
        for judge in common
    }


def _over_seeds(together: AgainstReference, rows: Sequence[SeedRow], confidence: float) -> AgainstReference:
    """Return the same tests with the spread over seeds in them; a test that a seed could not make is left out."""
    judges = [[row.judges[judge] for row in rows] for judge in together.rates]
    complete = [[each.complete.win_rate for each in seeds if each.complete] for seeds in judges]
    equal = [[each.length_controlled.value for each in seeds if each.length_controlled] for seeds in judges]

    def tests(rates: Mapping[str, Tested], by_seed: Sequence[Sequence[float]]) -> dict[str, Tested]:
        of_judge = dict(zip(together.rates, by_seed, strict=True))
        return {
            judge: _with_seeds(rate, of_judge[judge], confidence)
            for judge, rate in rates.items()
            if len(of_judge[judge]) == len(rows)
        }

    return AgainstReference(
        rates=tests(together.rates, [[each.win_rate for each in seeds] for seeds in judges]),
        complete=tests(together.complete, complete),
        equal_length=tests(together.equal_length, equal),
        predicted=together.predicted,
    )


def _with_seeds(rate: Tested, by_seed: Sequence[float], confidence: float) -> Tested:
    """Return a rate with the spread over seeds in its interval and its test, which is never surer than over prompts."""
    found = _mean_over_seeds(rate, by_seed, confidence)
    whole = found.interval(confidence)
    p_value = max(found.p_value(0.5), rate.p_value)
    inside = Interval(max(0.0, whole.low), min(1.0, whole.high))
    return replace(rate, rate=found.value, interval=inside, p_value=p_value, adjusted_p=p_value)


def _mean_over_seeds(rate: Tested, by_seed: Sequence[float], confidence: float) -> OverSeeds:
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    return of_seeds(by_seed, (rate.interval.high - rate.interval.low) / (2 * quantile), rate.prompts)


def _corrected(found: Mapping[str, AgainstReference]) -> dict[str, AgainstReference]:
    """Apply Holm's correction over the policies, test by test and judge by judge."""
    rates, complete, equal = (
        corrected_by_judge({policy: getattr(each, name) for policy, each in found.items()}, list(found))
        for name in ("rates", "complete", "equal_length")
    )
    return {
        policy: replace(each, rates=rates[policy], complete=complete[policy], equal_length=equal[policy])
        for policy, each in found.items()
    }


def _equal(together: AgainstReference, rows: Sequence[SeedRow], confidence: float, margin: float) -> bool:
    """Say whether every judge shows a win rate within the margin around one half."""
    return all(
        _mean_over_seeds(rate, [row.judges[judge].win_rate for row in rows], confidence).equivalent(
            0.5, margin, confidence
        )
        for judge, rate in together.rates.items()
    )


def _standing(
    against: AgainstReference, seeds: Sequence[Mapping[str, JudgedPairs]], *, equal: bool, confidence: float
) -> str:
    """Return where a policy stands, by the rules for one seed; too few seeds settle nothing.

    Args:
        against: its tests over seeds.
        seeds: its pairs with the reference by judge, an entry a seed.
        equal: no judge shows a difference, and all show that there is none.
        confidence: of intervals and tests.
    """
    if len(seeds) < FEWEST:
        return TOO_FEW
    cut = over_seeds(np.array([each[PROXY].cut.mean(1) for each in seeds]))
    found = standing(against, cut.interval(confidence).high < 0, confidence)
    return NO_DIFFERENCE if found is Standing.UNSETTLED and equal else found.value
