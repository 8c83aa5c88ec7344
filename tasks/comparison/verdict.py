"""State in words what the numbers show, and no more."""

from dataclasses import dataclass
from enum import Enum

from alignflow.evaluation.win_rates import WinRate
from tasks.comparison.cautions import cautions, rule_outcomes
from tasks.comparison.results import Comparison, PolicyResult
from tasks.comparison.wording import between, listing, number, p_value, percent, signed, span
from tasks.judges import judge_title
from tasks.policies import TITLES


class Standing(Enum):
    """Where a policy stands against the reference; the value is what the page prints.

    It follows from the interval and the sign-flip test, with Holm's correction over the trained policies. "Better"
    needs the proxy and every independent judge, so it needs no correction over judges (an intersection-union test).
    """

    BETTER = "better"
    UNCONFIRMED = "unconfirmed"
    DISPUTED = "disputed"
    UNSETTLED = "not significant"
    WORSE = "worse"


@dataclass(frozen=True)
class PolicyVerdict:
    """The verdict on one policy."""

    result: PolicyResult
    standing: Standing
    sentence: str
    cautions: tuple[str, ...]
    rule_outcomes: str
    """How the shares of right, abstained and wrong answers changed; empty without such questions."""


@dataclass(frozen=True)
class Verdict:
    """The top of the page: one headline, one verdict a policy."""

    headline: str
    detail: str
    policies: tuple[PolicyVerdict, ...]
    equal_kl: str
    """Who leads at equal distance from the reference; empty where it is not known."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The verdict for a terminal or a log, one statement a line."""
        said = [f"{self.headline} {self.detail}"]
        for one in self.policies:
            said.append(f"{one.result.title}: {one.standing.value}. It {one.sentence}")
            said += [f"  {each}" for each in (one.rule_outcomes, *one.cautions) if each]
        return tuple(filter(None, [*said, self.equal_kl]))


def verdict(comparison: Comparison) -> Verdict:
    """Judge every trained policy and name the one to take, if there is one."""
    policies = tuple(_of_policy(result, comparison) for result in comparison.candidates)
    headline, detail = _headline(policies, comparison)
    return Verdict(headline, detail, policies, _equal_kl(comparison))


def _headline(policies: tuple[PolicyVerdict, ...], comparison: Comparison) -> tuple[str, str]:
    # the judge that gives a policy the lowest rate counts
    ranked = sorted(policies, key=lambda one: -min(rate.rate for rate in one.result.rates.values()))
    better = [one for one in ranked if one.standing is Standing.BETTER]
    if better:
        count = len(better[0].result.judged)
        agree = {1: "the independent judge agrees", 2: "both independent judges agree"}
        said = agree.get(count, f"all {count} independent judges agree")
        return f"{better[0].result.title} is better than the reference, and {said}.", _rivals(better, comparison)
    for standing, advice in (
        (Standing.UNCONFIRMED, "Read the samples before you rely on it, or evaluate on more prompts."),
        (Standing.DISPUTED, "Take an earlier snapshot, a stronger KL penalty or a better reward."),
    ):
        found = [one for one in ranked if one.standing is standing]
        if found:
            return f"{found[0].result.title} {_doubt(found[0], comparison.confidence)}.", advice
    return (
        "No policy is shown to be better than the reference.",
        "More evaluation prompts narrow the intervals; longer training may move them.",
    )


def _doubt(one: PolicyVerdict, confidence: float) -> str:
    """Name the judges because of which a policy that the training reward prefers is not better."""
    judged = one.result.judged
    if not judged:
        return "leads by the training reward, but no independent judge was asked"
    if one.standing is Standing.DISPUTED:
        against = [name for name, rate in judged.items() if rate.settled(confidence) and rate.rate < 0.5]
        names = listing([judge_title(name) for name in against])
        return (
            f"pleases the training reward, but the {names} {'prefers' if len(against) == 1 else 'prefer'} the reference"
        )
    silent = [name for name, rate in judged.items() if not rate.settled(confidence)]
    names = listing([judge_title(name) for name in silent])
    return f"leads by the training reward, but the {names} {'does' if len(silent) == 1 else 'do'} not confirm it"


def _of_policy(result: PolicyResult, comparison: Comparison) -> PolicyVerdict:
    standing = _standing(result, comparison.confidence)
    return PolicyVerdict(
        result,
        standing,
        _sentence(result, standing, comparison.confidence),
        cautions(result, comparison),
        rule_outcomes(result, comparison),
    )


def _standing(result: PolicyResult, confidence: float) -> Standing:
    if not result.score.settled(confidence):
        return Standing.UNSETTLED
    if result.score.rate < 0.5:
        return Standing.WORSE
    settled = [rate for rate in result.judged.values() if rate.settled(confidence)]
    if any(rate.rate < 0.5 for rate in settled):
        return Standing.DISPUTED
    return Standing.BETTER if result.judged and len(settled) == len(result.judged) else Standing.UNCONFIRMED


def _sentence(result: PolicyResult, standing: Standing, confidence: float) -> str:
    said = f"{percent(result.score.rate)} of comparisons on unseen prompts ({between(result.score.interval)})"
    opening = {
        Standing.BETTER: f"is preferred over the reference in {said} by the training reward",
        Standing.UNCONFIRMED: f"is preferred over the reference in {said} by the training reward",
        Standing.DISPUTED: f"is preferred over the reference in {said} by the training reward",
        Standing.UNSETTLED: f"is not shown to differ from the reference: the training reward prefers it in {said}, "
        f"sign-flip test p\u00a0=\u00a0{p_value(result.score.adjusted_p)}",
        Standing.WORSE: f"is worse than the reference: the training reward prefers it in only {said}",
    }[standing]
    return f"{opening}; {_judges(result, confidence)}."


def _judges(result: PolicyResult, confidence: float) -> str:
    """Say what each independent judge shows."""
    groups: dict[str, list[str]] = {"agrees": [], "prefers the reference": [], "cannot tell the two apart": []}
    for judge, rate in result.judged.items():
        settled = rate.settled(confidence)
        said = "cannot tell the two apart" if not settled else "agrees" if rate.rate > 0.5 else "prefers the reference"
        groups[said].append(f"{judge_title(judge)} ({percent(rate.rate)}, {between(rate.interval)})")
    if result.score.rate < 0.5 or not result.score.settled(confidence):
        groups = {{"agrees": "prefers it"}.get(said, said): names for said, names in groups.items()}
    parts = [f"the {listing(names)} {_plural(said, len(names))}" for said, names in groups.items() if names]
    return "; ".join(parts) or "no independent judge was asked"


def _plural(verb: str, count: int) -> str:
    return verb if count == 1 else verb.replace("agrees", "agree").replace("prefers", "prefer")


def _rivals(better: list[PolicyVerdict], comparison: Comparison) -> str:
    """Say whether the leader is better than the next good policy, compared prompt by prompt."""
    if len(better) == 1:
        return "No other policy is."
    first, second = (one.result for one in better[:2])
    also = f"So {'is' if len(better) == 2 else 'are'} {listing([f.result.title for f in better[1:]])}"
    met = {judge: comparison.head_to_head(first.policy, second.policy, judge) for judge in comparison.judges}
    won = [rate for rate in met.values() if rate.settled(comparison.confidence) and rate.rate > 0.5]
    said = listing([f"{percent(r.rate)} ({between(r.interval)}) by the {judge_title(j)}" for j, r in met.items()])
    settled = "and every judge confirms it" if len(won) == len(met) else "but not every judge confirms the lead"
    return f"{also}; head to head {first.title} is preferred over {second.title} in {said}, {settled}."


def _equal_kl(comparison: Comparison) -> str:
    """Say who leads where all algorithms have moved equally far, by each judge."""
    if not comparison.equal_kl:
        return ""
    said = []
    for judge, found in comparison.equal_kl.items():
        lead = found.leads[-1]
        ahead = f"{TITLES[lead.first]} leads {TITLES[lead.second]} by {signed(lead.difference.value)}"
        doubt = "" if lead.difference.interval.low > 0 else ", not significant"
        said.append(f"{judge_title(judge)}: {ahead} ({span(lead.difference.interval)}{doubt})")
    level = next(iter(comparison.equal_kl.values())).levels[-1]
    return f"At equal KL to the reference ({number(level)} nats a response), {'; '.join(said)}."


def settles(rate: WinRate, confidence: float) -> str:
    """Return ``better``, ``worse`` or nothing, for marking a cell."""
    if not rate.settled(confidence):
        return ""
    return "better" if rate.rate > 0.5 else "worse"
