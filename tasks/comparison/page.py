"""Write the page of the comparison: verdict first, then numbers, charts, sample answers and costs."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tasks import html
from tasks.comparison import charts, side_by_side, svg, wording
from tasks.comparison.read_evaluations import OUTCOMES
from tasks.comparison.results import Comparison
from tasks.comparison.verdict import Verdict, settles
from tasks.judges import JUDGES, PROXY, judge_title
from tasks.policies import REFERENCE, TITLES

TEMPLATE = Path(__file__).parent / "templates" / "comparison.html.j2"
FILTERS: Mapping[str, Callable[..., object]] = {
    "percent": wording.percent,
    "between": wording.between,
    "change": lambda interval: wording.between(interval, sign=True),
    "points": wording.points,
    "number": wording.number,
    "signed": wording.signed,
    "span": wording.span,
    "p_value": wording.p_value,
    "duration": wording.duration,
    "shorten": side_by_side.shorten,
    "judge": judge_title,
    "capital": wording.capital,
    "unbroken": wording.unbroken,
}


def render(comparison: Comparison, verdict: Verdict) -> str:
    """Return the page as one HTML text that needs no other file."""
    chosen = side_by_side.choose(comparison)
    content = {
        "verdict": verdict,
        "comparison": comparison,
        "colours": svg.theme(comparison.policies),
        "policies": comparison.policies,
        "titles": TITLES,
        "reference": REFERENCE,
        "proxy": PROXY,
        "shares": OUTCOMES,
        "judges": list(dict.fromkeys(judge for o in comparison.results.values() for judge in o.rates)),
        "reward_models": {name: JUDGES[name].model_title for name in comparison.reward_models},
        "settles": settles,
        "samples": chosen,
        "random_samples": sum(sample.reason == "Random" for sample in chosen),
        "win_rates": charts.win_rates(comparison),
        "over_optimisation": charts.over_optimisation(comparison) if comparison.trajectories else None,
        "along_training": charts.along_training(comparison) if comparison.trajectories else [],
        "reward_charts": {name: charts.reward_model(name, each) for name, each in comparison.reward_models.items()},
        "curves": {policy: charts.learning_curves(curve, policy) for policy, curve in comparison.curves.items()},
        "costs": charts.costs(comparison),
    }
    return html.render(TEMPLATE, content, FILTERS)
