"""Write the page a reader decides from: words first, then numbers, pictures, samples and costs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks import charts
from tasks.evaluations import REFERENCE, TITLES, Answer
from tasks.outcomes import Comparison, values
from tasks.verdict import interval, percent, verdict

RANDOM_SAMPLES = 3
"""Prompts shown that nothing but the seed chose."""
LONGEST_TEXT = 4000
"""Characters of a text that are shown; a page stays below a megabyte with any evaluation."""


@dataclass(frozen=True)
class Sample:
    """One prompt and what every policy answered."""

    reason: str
    prompt: str
    answers: dict[str, Answer]
    """By policy, in the order of `TITLES`."""


def render(comparison: Comparison) -> str:
    """Return the page as one HTML text that needs no other file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # whatever a model wrote is text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "duration": duration,
        "shorten": shorten,
        "signed": signed,
        "unbroken": unbroken,
    }
    return environment.get_template("comparison.html.j2").render(
        verdict=verdict(comparison),
        comparison=comparison,
        prompts=comparison.reference.score.prompts,
        titles=TITLES,
        reference=REFERENCE,
        samples=samples(comparison),
        win_rates=charts.win_rates(comparison),
        against_kl=[
            charts.against_kl(comparison, "score", "Reward model score"),
            charts.against_kl(comparison, "gold", "Independent judge"),
        ],
        curves={policy: charts.learning_curves(curve, policy) for policy, curve in comparison.curves.items()},
        costs=charts.costs(comparison),
    )


def samples(comparison: Comparison) -> tuple[Sample, ...]:
    """Choose the prompts to show: a seeded draw, then the largest gain and loss by the independent judge.

    Gain is the mean over the trained policies of gold − reference's gold; among equals the reward model's
    score decides.
    """
    policies = [outcome.policy for outcome in comparison.candidates]
    gold, score = (_gain(comparison, policies, judge) for judge in ("gold", "score"))
    ranked = np.lexsort((score, gold))  # the last key is the first to decide
    extremes = dict.fromkeys((int(ranked[-1]), int(ranked[0])))
    rest = [i for i in range(gold.size) if i not in extremes]
    random = np.random.default_rng(comparison.resampling.seed)
    drawn = sorted(random.permutation(rest)[:RANDOM_SAMPLES].tolist())
    reasons = [(i, "Random") for i in drawn]
    for i, direction in zip(extremes, ("gain", "loss"), strict=False):
        reasons.append((i, f"Largest {direction} by the independent judge ({signed(float(gold[i]))} on average)"))
    return tuple(_sample(comparison, i, reason) for i, reason in reasons)


def duration(seconds: float) -> str:
    """Write seconds as e.g. ``45 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shorten(text: str) -> str:
    """Cut a very long text and say so."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n… ({len(text) - LONGEST_TEXT} more characters)"


def signed(number: float) -> str:
    """Write a difference with its sign, e.g. ``+0.31`` or ``−0.20``."""
    return f"{number:+.2f}".replace("-", "−")


def unbroken(text: str) -> str:
    """Keep ranges such as ``62–79 %`` on one line."""
    return text.replace("–", "\u2060–\u2060")


def _gain(comparison: Comparison, policies: Iterable[str], judge: str) -> np.ndarray:
    mean = np.mean([values(comparison.answers[policy], judge) for policy in policies], axis=0)
    return np.asarray(mean - values(comparison.answers[REFERENCE], judge))


def _sample(comparison: Comparison, index: int, reason: str) -> Sample:
    return Sample(
        reason=reason,
        prompt=comparison.answers[REFERENCE][index].prompt,
        answers={policy: rows[index] for policy, rows in comparison.answers.items()},
    )
