"""The comparison as files and metrics: ``reports/comparison.json``, ``metrics/compare.json`` and MLflow's rows.

Every key is documented in docs/metrics.md.
"""

from collections.abc import Mapping
from dataclasses import asdict

from alignflow.evaluation.win_rates import Mean, Rate, WinRate
from tasks.comparison.read_evaluations import OUTCOMES
from tasks.comparison.results import Comparison, PolicyResult
from tasks.comparison.verdict import PolicyVerdict, Verdict
from tasks.judges import PROXY, Kind, judge_of

Json = Mapping[str, object]


def rows(comparison: Comparison, said: Verdict) -> list[dict[str, object]]:
    """Return the entries of ``reports/comparison.json``."""
    verdicts = {one.result.policy: one for one in said.policies}
    return [row(result, comparison, verdicts.get(result.policy)) for result in comparison.compared]


def row(result: PolicyResult, comparison: Comparison, verdict: PolicyVerdict | None) -> dict[str, object]:
    """Return the policy's entry in ``reports/comparison.json``; other tools rely on its keys."""
    assert result.cost is not None, result.policy
    return {
        "policy": result.policy,
        "win_rate": result.score.rate,
        "win_rate_low": result.score.interval.low,
        "win_rate_high": result.score.interval.high,
        "score_mean": result.means[PROXY].value,
        "gold_mean": _gold(result),
        "kl_reference": result.traits["kl"].value,
        "response_length_mean": result.traits["response_length"].value,
        "truncated_fraction": result.traits["truncated"].value,
        **result.cost.model_dump(),
        "standing": verdict.standing.value if verdict else "reference",
        "sentence": verdict.sentence if verdict else "",
        "remains": verdict.remains if verdict else "",
        "cautions": list(verdict.cautions) if verdict else [],
        "rule_outcomes": verdict.rule_outcomes if verdict else "",
        "judges": {
            judge: _rate(rate)
            | _among(result, judge)
            | ({"mean": _mean(result.means[judge])} if judge in result.means else {})
            for judge, rate in result.rates.items()
        },
        "traits": {name: _mean(each) for name, each in result.traits.items()},
        "shares": {name: _mean(each) for name, each in result.shares.items()},
        "changes": {name: _mean(each) for name, each in result.changes.items()},
        "quality": result.quality.model_dump(),
        "round_robin": {
            judge: {other: _rate(met[result.policy, other]) for other in comparison.policies if other != result.policy}
            for judge, met in comparison.round_robin.items()
        },
        "equal_kl": {
            judge: [
                {"kl": level, "gain": _mean(gain)}
                for level, gain in zip(found.levels, found.gains[result.policy], strict=True)
            ]
            for judge, found in comparison.equal_kl.items()
            if result.policy in found.gains
        },
    }


def summary(comparison: Comparison, said: Verdict) -> Json:
    """Return ``reports/verdict.json``: the verdict in words, and what concerns the comparison as a whole."""
    return {
        "headline": said.headline,
        "detail": said.detail,
        "control": list(said.control),
        "equal_kl": said.equal_kl,
        "lines": list(said.lines),
        "agreements": [
            {"judges": list(judges), "share": each.share, "kappa": each.kappa, "pairs": each.pairs}
            for judges, each in comparison.agreements.items()
        ],
        "common_errors": [
            {"judges": list(judges), **asdict(each), "expected": each.expected}
            for judges, each in comparison.common_errors.items()
        ],
        "cut_or_length": {judge: asdict(model) for judge, model in comparison.cut_or_length.items()},
        "equal_kl_leads": {
            judge: [
                {"kl": level, "first": lead.first, "second": lead.second, "difference": _mean(lead.difference)}
                for level, lead in zip(found.levels, found.leads, strict=True)
            ]
            for judge, found in comparison.equal_kl.items()
        },
        "prompts": comparison.reference.score.prompts,
        "confidence": comparison.confidence,
    }


def of_policy(result: PolicyResult) -> dict[str, float]:
    """Return the policy's figures under the keys of its own run in MLflow."""
    flat: dict[str, float] = {}
    for name, rates in (
        ("win_rate", result.rates),
        ("complete_win_rate", result.against.complete),
        ("length_controlled_win_rate", result.against.equal_length),
    ):
        for judge, rate in rates.items():
            flat |= _spread(name if judge == PROXY else f"judge_{name}/{judge}", rate)
    for judge, value in result.against.predicted.items():
        flat["predicted_win_rate" if judge == PROXY else f"judge_predicted_win_rate/{judge}"] = value
    flat |= {"score_mean": result.means[PROXY].value, "kl_reference": result.traits["kl"].value}
    flat |= {f"judge_mean/{judge}": each.value for judge, each in result.means.items() if judge != PROXY}
    flat |= {
        "response_length_mean": result.traits["response_length"].value,
        "truncated_fraction": result.traits["truncated"].value,
        "repetition_mean": result.traits["repetition"].value,
    }
    flat |= {f"{name}_fraction": result.shares[name].value for name in OUTCOMES if result.shares}
    return flat


def metrics(comparison: Comparison) -> dict[str, float]:
    """Return the flat numbers of ``metrics/compare.json``, e.g. ``win_rate/dpo``."""
    flat = {
        f"{key}/{result.policy}": value for result in comparison.candidates for key, value in of_policy(result).items()
    }
    for judge, found in comparison.equal_kl.items():
        name = "equal_kl_gain" if judge == PROXY else f"judge_equal_kl_gain/{judge}"
        flat |= {f"{name}/{policy}": gains[-1].value for policy, gains in found.gains.items()}
    return flat


def round_robin(comparison: Comparison) -> list[dict[str, object]]:
    """Return the round-robin as rows of a table: one for each pair of policies and judge."""
    return [
        {"judge": judge, "policy": one, "other": other, **_rate(rate)}
        for judge, met in comparison.round_robin.items()
        for (one, other), rate in met.items()
    ]


def _gold(result: PolicyResult) -> float | None:
    """Return the mean of the first rule among the judges, of the first independent reward model without one."""
    judges = sorted(
        (judge for judge in result.means if judge != PROXY), key=lambda judge: judge_of(judge).kind is not Kind.RULE
    )
    return result.means[judges[0]].value if judges else None


def _rate(rate: WinRate) -> dict[str, object]:
    return {
        "win_rate": rate.rate,
        "low": rate.interval.low,
        "high": rate.interval.high,
        "prompts": rate.prompts,
        "wins": rate.wins,
        "ties": rate.ties,
        "losses": rate.losses,
        "p_value": rate.p_value,
        "adjusted_p": rate.adjusted_p,
    }


def _mean(mean: Mean) -> dict[str, float]:
    return {"value": mean.value, "low": mean.interval.low, "high": mean.interval.high}


def _among(result: PolicyResult, judge: str) -> dict[str, object]:
    """Return what a judge says of complete pairs; None where it saw none."""
    complete = result.against.complete.get(judge)
    equal = result.against.equal_length.get(judge)
    return {
        "complete": _rate(complete) if complete else None,
        "length_controlled": {
            "value": equal.rate,
            "low": equal.interval.low,
            "high": equal.interval.high,
            "p_value": equal.p_value,
            "adjusted_p": equal.adjusted_p,
        }
        if equal
        else None,
        "predicted": result.against.predicted.get(judge),
    }


def _spread(key: str, rate: Rate) -> dict[str, float]:
    """Return a rate, its bounds and its corrected p; their endings follow the quantity's name, before the judge's."""
    name, slash, judge = key.partition("/")
    values = {
        "": rate.rate,
        "_low": rate.interval.low,
        "_high": rate.interval.high,
        "_p_value": rate.adjusted_p,
    }
    return {f"{name}{ending}{slash}{judge}": value for ending, value in values.items()}
