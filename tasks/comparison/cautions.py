"""What a reader should know before relying on a win: sentences that are no part of the verdict itself."""

from collections.abc import Iterator

from tasks.comparison.results import AgainstReference, Comparison, PolicyResult
from tasks.comparison.wording import between, listing, number, percent, points
from tasks.judges import PROXY, judge_title

LONGER = 1.25
"""Mean length relative to the reference above which a reader should think of length bias."""
TRUNCATED = 0.1
"""Change of the truncated share: above it answers may simply have lost their end, or won by having one."""
MORE_REPETITION = 0.05
"""Rise of the share of repeated trigrams."""
MORE_DRIFT = 0.05
"""Rise of the share of answers in another language than their prompt."""
MORE_PERPLEXITY = 1.1
"""Perplexity on held-out text relative to the reference."""
LESS_CHOICE = 0.05
"""Fall of the accuracy in multiple choice."""


def cautions(result: PolicyResult, comparison: Comparison) -> tuple[str, ...]:
    """Return every caution about a policy, the most serious first."""
    reference = comparison.reference
    return (
        *_over_optimised(result, comparison),
        *_length(result, comparison),
        *_traits(result, reference),
        *_capability(result, reference),
    )


def _over_optimised(result: PolicyResult, comparison: Comparison) -> Iterator[str]:
    trajectory = comparison.trajectories.get(result.policy)
    if trajectory is None:
        return
    for judge, fall in trajectory.falls.items():
        since = "the start" if fall.since == 0 else trajectory.labels[fall.since]
        yield (
            f"Over-optimised: from {since} to the end of training its {judge_title(PROXY)} rose by "
            f"{number(fall.proxy)} while the {judge_title(judge)} fell by {number(-fall.judge)}. "
            "An earlier snapshot may be the better one."
        )


def explained_by_length(against: AgainstReference, judge: str) -> bool:
    """Say whether at least half of a judge's lead among complete pairs is gone at equal length: more than chance."""
    return against.equal_length[judge].rate - 0.5 < (against.complete[judge].rate - 0.5) / 2


def _length(result: PolicyResult, comparison: Comparison) -> Iterator[str]:
    """Name the judges whose significant preference among complete pairs is not significant at equal length."""
    gone: list[str] = []
    open_: list[str] = []
    for judge, rate in result.against.complete.items():
        equal = result.against.equal_length[judge]
        if not rate.won(comparison.confidence) or equal.won(comparison.confidence):
            continue
        said = f"{judge_title(judge)} ({percent(equal.rate)}, {between(equal.interval)}, not {percent(rate.rate)})"
        (gone if explained_by_length(result.against, judge) else open_).append(said)
    lead = f"Its answers are {'longer' if result.changes['response_length'].value > 0 else 'shorter'}: at equal length"
    if gone:
        yield f"{lead} most of the win by the {listing(gone)} is gone."
    if open_:
        yield f"{lead} the win by the {listing(open_)} is not significant; lengths differ too much to tell."


def _traits(result: PolicyResult, reference: PolicyResult) -> Iterator[str]:
    after, before = result.traits, reference.traits
    if after["response_length"].value > LONGER * before["response_length"].value:
        yield (
            f"Its answers are longer ({after['response_length'].value:.0f} tokens against "
            f"{before['response_length'].value:.0f}); judges often favour length."
        )
    for trait, least, said in (
        ("truncated", TRUNCATED, "of its answers are cut off by the length limit"),
        ("repetition", MORE_REPETITION, "of its word trigrams are repetitions"),
        ("language_drift", MORE_DRIFT, "of its answers are in another language than their prompt"),
    ):
        change = result.changes.get(trait)
        if change and change.value > least and change.interval.low > 0:
            yield f"{percent(after[trait].value)} {said}, against {percent(before[trait].value)}."
    change = result.changes["truncated"]
    if change.value < -TRUNCATED and change.interval.high < 0:
        yield (
            f"{percent(after['truncated'].value)} of its answers are cut off by the length limit, against "
            f"{percent(before['truncated'].value)}: judges punish a cut-off, so part of the win is that answers end."
        )


def _capability(result: PolicyResult, reference: PolicyResult) -> Iterator[str]:
    after, before = result.quality, reference.quality
    if after.perplexity and before.perplexity and after.perplexity > MORE_PERPLEXITY * before.perplexity:
        yield (
            f"Its perplexity on held-out text is {after.perplexity:.1f}, the reference's {before.perplexity:.1f}: "
            "it has forgotten some of it."
        )
    if after.multiple_choice is not None and before.multiple_choice is not None:
        fall = before.multiple_choice - after.multiple_choice
        if fall > LESS_CHOICE:
            yield (
                f"It answers {percent(after.multiple_choice)} of the multiple-choice questions, "
                f"{points(-fall)} against the reference ({percent(before.multiple_choice)})."
            )


def rule_outcomes(result: PolicyResult, comparison: Comparison) -> str:
    """Say how right, abstained and wrong answers changed; empty without questions whose answer is known."""
    if not result.shares:
        return ""
    before = comparison.reference.shares
    settled: list[str] = []
    open_: list[str] = []
    for name, noun in (("wrong", "wrong answers"), ("abstain", "abstentions"), ("right", "right answers")):
        change = result.changes[name]
        moved = f"{percent(before[name].value)} to {percent(result.shares[name].value)}"
        if change.interval.low > 0 or change.interval.high < 0:
            verb = "rise" if change.value > 0 else "fall"
            settled.append(
                f"{noun} {verb} from {moved} ({points(change.value)}, {between(change.interval, sign=True)})"
            )
        else:
            open_.append(f"{noun} ({moved})")
    parts = [", ".join(settled)] if settled else []
    if open_:
        parts.append(f"no significant change in {listing(open_)}")
    said = "; ".join(parts)
    return f"On {comparison.rule_rows} questions with a known answer: {said}."
