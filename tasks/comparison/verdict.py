"""State in words what the numbers show, and no more."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from alignflow.evaluation.win_rates import Rate, WinRate
from tasks.comparison.cautions import cautions, explained_by_length, rule_outcomes
from tasks.comparison.results import AgainstReference, Comparison, PolicyResult
from tasks.comparison.wording import between, listing, number, p_value, percent, signed, span
from tasks.judges import PROXY, judge_title
from tasks.policies import POLICIES, TITLES

ONE_SEED = "One seed"
"""Begins the headline: a comparison is of one run, and other seeds may give another; see `tasks.seeds.compute`."""


class Standing(Enum):
    """Where a policy stands against the reference; the value is what the page prints.

    "Better" needs three tests by the proxy and by every independent judge: over all pairs of answers, over those in
    which neither is cut off, and over these at equal length. Each needs its interval and its test, with Holm's
    correction over the trained policies. All must hold, so they need no correction among themselves (an
    intersection-union test, Berger 1982): a policy that in truth fails one of them is called better no more often than
    this one test errs, at most (1 − confidence) / 2. The price is power: the hardest test decides. Holm's correction
    keeps this over all policies that fail the same test; policies that fail different ones add up.
    """

    BETTER = "better"
    ENDS = "ends its answers; otherwise not shown better"
    LENGTH = "preferred for its length; not shown better at equal length"
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
    remains: str
    """What remains of a win among complete pairs and at equal length, and what these alone would predict."""
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
    control: tuple[str, ...]
    """How each policy does against a control, a sentence each; empty without one."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The verdict for a terminal or a log, one statement a line."""
        said = [f"{self.headline} {self.detail}"]
        for one in self.policies:
            said.append(f"{one.result.title}: {one.standing.value}. It {one.sentence}")
            said += [f"  {each}" for each in (one.remains, one.rule_outcomes, *one.cautions) if each]
        return tuple(filter(None, [*said, *self.control, self.equal_kl]))


def verdict(comparison: Comparison) -> Verdict:
    """Judge every trained policy and name the one to take, if there is one."""
    policies = tuple(_of_policy(result, comparison) for result in comparison.candidates)
    headline, detail = _headline(tuple(one for one in policies if not _is_control(one)), comparison)
    begins = ONE_SEED
    if comparison.opened:
        begins, detail = f"Test side, {ONE_SEED.lower()}", f"{detail} {comparison.opened}"
    controls = _against_controls(policies, comparison)
    return Verdict(f"{begins}: {headline}", detail, policies, _equal_kl(comparison), controls)


def _is_control(one: PolicyVerdict) -> bool:
    return POLICIES[one.result.policy].control


def _against_controls(policies: tuple[PolicyVerdict, ...], comparison: Comparison) -> tuple[str, ...]:
    """Say whether learning from preferences is better than a control, compared prompt by prompt."""
    controls = [one.result for one in policies if _is_control(one)]
    others = [one.result for one in policies if not _is_control(one)]
    return tuple(_met(one, control, comparison) for control in controls for one in others)


def _met(one: PolicyResult, control: PolicyResult, comparison: Comparison) -> str:
    rates = {judge: comparison.head_to_head(one.policy, control.policy, judge) for judge in comparison.judges}
    won = [judge for judge, rate in rates.items() if rate.settled(comparison.confidence) and rate.rate > 0.5]
    all_won = "every judge confirms it" if len(won) == len(rates) else "not every judge confirms it"
    return f"Against {control.title}: {one.title} is preferred in {_by_judge(rates)}; {all_won}."


def _by_judge(rates: Mapping[str, WinRate]) -> str:
    return listing([f"{percent(r.rate)} ({between(r.interval)}) by the {judge_title(j)}" for j, r in rates.items()])


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
        (
            Standing.ENDS,
            "Evaluate with a larger limit of the response length, so that the reference ends its answers, too.",
        ),
        (
            Standing.LENGTH,
            "Use data in which length does not tell the better answer, or a reward without it.",
        ),
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
    silent = [name for name, rate in judged.items() if not rate.won(confidence)]
    if silent:
        names = listing([judge_title(name) for name in silent])
        return f"leads by the training reward, but the {names} {'does' if len(silent) == 1 else 'do'} not confirm it"
    # every judge confirms it over all pairs of answers: what is missing is one of the further tests
    weak = _not_won(one.result.against, one.result.against.complete, confidence)
    if one.standing is Standing.ENDS:
        return f"ends its answers more often; where both answers end, the {_names(weak)} {_shows(weak)} no win"
    weak_at_length = _not_won(one.result.against, one.result.against.equal_length, confidence)
    if one.standing is Standing.LENGTH:
        return (
            f"is preferred for its {_longer(one.result)} answers; at equal length the {_names(weak_at_length)} "
            f"{_shows(weak_at_length)} no win"
        )
    where = "where both answers end" if weak else "at equal length"
    return (
        f"leads, but {where} the {_names(weak or weak_at_length)} {_shows(weak or weak_at_length)} no significant win"
    )


def _not_won(against: AgainstReference, rates: Mapping[str, Rate], confidence: float) -> list[str]:
    """Return the judges by which one of the tests is not won; one that could not be made is not."""
    return [judge for judge in against.rates if judge not in rates or not rates[judge].won(confidence)]


def _names(judges: list[str]) -> str:
    return listing([judge_title(judge) for judge in judges])


def _shows(judges: list[str]) -> str:
    return "shows" if len(judges) == 1 else "show"


def _longer(result: PolicyResult) -> str:
    return "longer" if result.changes["response_length"].value > 0 else "shorter"


def _of_policy(result: PolicyResult, comparison: Comparison) -> PolicyVerdict:
    found = standing(result.against, result.changes["truncated"].interval.high < 0, comparison.confidence)
    return PolicyVerdict(
        result,
        found,
        _sentence(result, found, comparison.confidence),
        _remains(result, found, comparison.confidence),
        cautions(result, comparison),
        rule_outcomes(result, comparison),
    )


def standing(against: AgainstReference, ends_more: bool, confidence: float) -> Standing:
    """Return where a policy stands.

    Args:
        against: its tests against the reference.
        ends_more: fewer of its answers are cut off than of the reference's, significantly.
        confidence: of intervals and tests.
    """
    proxy = against.rates[PROXY]
    if not proxy.settled(confidence):
        return Standing.UNSETTLED
    if proxy.rate < 0.5:
        return Standing.WORSE
    judged = [rate for judge, rate in against.rates.items() if judge != PROXY]
    if any(rate.settled(confidence) and rate.rate < 0.5 for rate in judged):
        return Standing.DISPUTED
    confirmed = judged and all(rate.won(confidence) for rate in judged)
    return _of_a_win(against, ends_more, confidence) if confirmed else Standing.UNCONFIRMED


def _of_a_win(against: AgainstReference, ends_more: bool, confidence: float) -> Standing:
    """Say what a win by every judge over all pairs of answers is, when cut-offs and length are taken away."""
    if _not_won(against, against.complete, confidence):
        return Standing.ENDS if ends_more else Standing.UNCONFIRMED
    gone = _not_won(against, against.equal_length, confidence)
    if not gone:
        return Standing.BETTER
    by_length = any(explained_by_length(against, judge) for judge in gone)
    return Standing.LENGTH if by_length else Standing.UNCONFIRMED


def _sentence(result: PolicyResult, standing: Standing, confidence: float) -> str:
    said = f"{percent(result.score.rate)} of comparisons on unseen prompts ({between(result.score.interval)})"
    opening = {
        Standing.BETTER: f"is preferred over the reference in {said} by the training reward",
        Standing.ENDS: f"is preferred over the reference in {said} by the training reward",
        Standing.LENGTH: f"is preferred over the reference in {said} by the training reward",
        Standing.UNCONFIRMED: f"is preferred over the reference in {said} by the training reward",
        Standing.DISPUTED: f"is preferred over the reference in {said} by the training reward",
        Standing.UNSETTLED: f"is not shown to differ from the reference: the training reward prefers it in {said}, "
        f"sign-flip test p\u00a0=\u00a0{p_value(result.score.adjusted_p)}",
        Standing.WORSE: f"is worse than the reference: the training reward prefers it in only {said}",
    }[standing]
    return f"{opening}; {_judges(result, confidence)}."


def _remains(result: PolicyResult, standing: Standing, confidence: float) -> str:
    """Say what remains of a win when cut-offs and length are taken away; nothing where there is no win."""
    if standing in (Standing.UNSETTLED, Standing.WORSE):
        return ""
    against = result.against

    def each(rates: Mapping[str, Rate]) -> str:
        return listing(
            [
                f"{judge_title(judge)} {percent(rate.rate)} ({between(rate.interval)}"
                f"{'' if rate.settled(confidence) else ', not significant'})"
                for judge, rate in rates.items()
            ]
        )

    predicted = listing([f"{judge_title(judge)} {percent(rate)}" for judge, rate in against.predicted.items()])
    model = f'A model that knows only "cut off or not" and length predicts: {predicted}.'
    if not against.complete:
        return f"No pair of answers is complete: in each, an answer is cut off. {model}"
    first = next(iter(against.complete.values()))
    said = (
        f"Where neither answer is cut off ({first.prompts} of {result.score.prompts} prompts): {each(against.complete)}"
    )
    return f"{said}; of these at equal length: {each(against.equal_length)}. {model}"


def _judges(result: PolicyResult, confidence: float) -> str:
    """Say what each independent judge shows."""
    silent = "shows no significant difference"
    groups: dict[str, list[str]] = {"agrees": [], "prefers the reference": [], silent: []}
    for judge, rate in result.judged.items():
        settled = rate.settled(confidence)
        said = silent if not settled else "agrees" if rate.rate > 0.5 else "prefers the reference"
        p = "" if settled else f", p\u00a0=\u00a0{p_value(rate.adjusted_p)}"
        groups[said].append(f"{judge_title(judge)} ({percent(rate.rate)}, {between(rate.interval)}{p})")
    if result.score.rate < 0.5 or not result.score.settled(confidence):
        groups = {{"agrees": "prefers it"}.get(said, said): names for said, names in groups.items()}
    parts = [f"the {listing(names)} {_plural(said, len(names))}" for said, names in groups.items() if names]
    return "; ".join(parts) or "no independent judge was asked"


def _plural(verb: str, count: int) -> str:
    return verb if count == 1 else verb.replace("agrees", "agree").replace("prefers", "prefer").replace("shows", "show")


def _rivals(better: list[PolicyVerdict], comparison: Comparison) -> str:
    """Say whether the leader is better than the next good policy, compared prompt by prompt."""
    if len(better) == 1:
        return "No other policy is."
    first, second = (one.result for one in better[:2])
    also = f"So {'is' if len(better) == 2 else 'are'} {listing([f.result.title for f in better[1:]])}"
    met = {judge: comparison.head_to_head(first.policy, second.policy, judge) for judge in comparison.judges}
    won = [rate for rate in met.values() if rate.settled(comparison.confidence) and rate.rate > 0.5]
    settled = "and every judge confirms it" if len(won) == len(met) else "but not every judge confirms the lead"
    return f"{also}; head to head {first.title} is preferred over {second.title} in {_by_judge(met)}, {settled}."


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
