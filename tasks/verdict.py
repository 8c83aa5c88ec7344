"""Say in words what the numbers allow to be said, and no more."""

from dataclasses import dataclass
from enum import Enum

from alignflow.comparison import WinRate
from tasks.outcomes import Comparison, Outcome

LONGER = 1.25
"""Mean length relative to the reference above which a reader should think of length bias."""
MORE_TRUNCATED = 0.1
"""Rise of the truncated share above which answers may simply have lost their end."""


class Standing(Enum):
    """Where a policy stands against the reference; the value is what the page prints."""

    BETTER = "better"
    UNCONFIRMED = "unconfirmed"
    DISPUTED = "disputed"
    UNSETTLED = "not settled"
    WORSE = "worse"


@dataclass(frozen=True)
class Finding:
    """The verdict on one policy."""

    outcome: Outcome
    standing: Standing
    sentence: str
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The page's first words: one headline, one finding a policy."""

    headline: str
    detail: str
    findings: tuple[Finding, ...]


def verdict(comparison: Comparison) -> Verdict:
    """Judge every trained policy and name the one to take, if there is one."""
    findings = tuple(_finding(outcome, comparison) for outcome in comparison.candidates)
    ranked = sorted(findings, key=lambda finding: -finding.outcome.score.rate)
    better = [finding for finding in ranked if finding.standing is Standing.BETTER]
    unconfirmed = [finding for finding in ranked if finding.standing is Standing.UNCONFIRMED]
    if better:
        headline = f"{better[0].outcome.title} is better than the reference, and both judges agree."
        detail = _rivals(better, comparison)
    elif unconfirmed:
        headline = f"{unconfirmed[0].outcome.title} leads, but the independent judge does not confirm it."
        detail = "Read the samples before you rely on it, or evaluate on more prompts."
    else:
        headline = "No policy is shown to be better than the reference."
        detail = "More evaluation prompts narrow the intervals; longer training may move them."
    return Verdict(headline, detail, findings)


def percent(share: float) -> str:
    """Write a share as e.g. ``71 %``, with a space that does not break."""
    return f"{100 * share:.0f}\u00a0%"


def interval(rate: WinRate) -> str:
    """Write an interval as e.g. ``62–79 %``."""
    return f"{100 * rate.interval.low:.0f}–{percent(rate.interval.high)}"


def _finding(outcome: Outcome, comparison: Comparison) -> Finding:
    standing = _standing(outcome, comparison.resampling.confidence)
    rate, gold = outcome.score, outcome.gold
    said = f"{percent(rate.rate)} of unseen prompts ({interval(rate)})"
    judged = f"{percent(gold.rate)}, {interval(gold)}"
    sentence = {
        Standing.BETTER: f"is preferred over the reference on {said}; the independent judge agrees ({judged}).",
        Standing.UNCONFIRMED: f"is preferred over the reference on {said} by the reward model, but the "
        f"independent judge cannot tell the two apart ({judged}).",
        Standing.DISPUTED: f"is preferred over the reference on {said} by the reward model, but the "
        f"independent judge prefers the reference ({judged}): a sign of over-optimised reward.",
        Standing.UNSETTLED: f"is not shown to differ from the reference: preferred on {said}, "
        f"sign test p\u00a0=\u00a0{rate.p_value:.2g}; independent judge {judged}.",
        Standing.WORSE: f"is worse than the reference: preferred on only {said}; independent judge {judged}.",
    }[standing]
    return Finding(outcome, standing, sentence, _cautions(outcome, comparison.reference))


def _standing(outcome: Outcome, confidence: float) -> Standing:
    if not outcome.score.settled(confidence):
        return Standing.UNSETTLED
    if outcome.score.rate < 0.5:
        return Standing.WORSE
    if not outcome.gold.settled(confidence):
        return Standing.UNCONFIRMED
    return Standing.BETTER if outcome.gold.rate > 0.5 else Standing.DISPUTED


def _cautions(outcome: Outcome, reference: Outcome) -> tuple[str, ...]:
    cautions = []
    if outcome.response_length_mean > LONGER * reference.response_length_mean:
        cautions.append(
            f"Its answers are longer ({outcome.response_length_mean:.0f} tokens against "
            f"{reference.response_length_mean:.0f}); judges often favour length."
        )
    if outcome.truncated_fraction > reference.truncated_fraction + MORE_TRUNCATED:
        cautions.append(
            f"{percent(outcome.truncated_fraction)} of its answers are cut off by the length limit, "
            f"against {percent(reference.truncated_fraction)}."
        )
    return tuple(cautions)


def _rivals(better: list[Finding], comparison: Comparison) -> str:
    """Say whether the leader's lead over the next good policy is real, compared prompt by prompt."""
    if len(better) == 1:
        return "It is the only policy of which that can be said here."
    first, second = (finding.outcome for finding in better[:2])
    direct = comparison.head_to_head(first.policy, second.policy)
    said = f"head to head it is preferred over {second.title} on {percent(direct.rate)} of prompts ({interval(direct)})"
    if direct.settled(comparison.resampling.confidence) and direct.rate > 0.5:
        return f"It leads {', '.join(f.outcome.title for f in better[1:])} by win rate; {said}."
    return f"The lead over the next one is not settled: {said}."
