"""Step-DPO: DPO on single steps; the policy's own first wrong step against a step that it corrects it with.

L = −log σ(β·log π/π_ref(s_w|x, s_<k) − β·log π/π_ref(s_l|x, s_<k))       (Lai et al. 2024, arXiv:2406.18629, Eq. 2)

The loss is that of ``dpo``, with the steps before as part of the prompt; here is what is particular: where the first
wrong step is, and what is put against it. The paper asks GPT-4 for the first error. Here a prefix is *alive* if one of
m continuations from it earns the reward of a right answer; the first error is the step k whose prefix k−1 is alive and
whose prefix k is dead. It is found by bisection, which takes a dead prefix to stay dead. A living prefix whose
continuations are right with probability q looks dead with probability (1−q)^m. The chosen step is the first step of
right continuations from prefix k−1 (Eq. 3), here the one that most of them begin with.

Departures. The official code takes a step judged neutral for an error; here an answer that is neither right nor wrong
is left out. It pairs all distinct corrections with an error; here ``corrections`` says how many. It puts no end token
after a step; here a last step keeps the one that was sampled.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from alignflow.types import Step


@dataclass(frozen=True)
class StepDPOConfig:
    """What counts as right, and how many pairs an error gives."""

    right_from: float
    wrong_to: float
    corrections: int


class Continued(NamedTuple):
    """A sampled end of an answer, in steps, and the reward of the whole answer."""

    steps: tuple[Step, ...]
    reward: float | None


class Probe(NamedTuple):
    """How many continuations of a prefix were right."""

    prefix: int
    right: int
    of: int


@dataclass(frozen=True)
class Search:
    """The search for the first wrong step of a wrong answer."""

    steps: tuple[Step, ...]
    low: int
    """This many steps are a living prefix."""
    high: int
    """This many steps are a dead prefix; the whole answer at first."""
    right: tuple[Continued, ...] | None
    """Right continuations of the living prefix; None: still to be sampled."""
    tried: tuple[Probe, ...] = ()

    @property
    def wanted(self) -> int | None:
        """How many steps to continue after; None: the search is over."""
        if self.right is None:
            return self.low
        return (self.low + self.high) // 2 if self.right and self.high - self.low > 1 else None


def is_right(reward: float | None, config: StepDPOConfig) -> bool:
    """Return whether a reward is that of a right answer."""
    return reward is not None and reward >= config.right_from


def is_wrong(reward: float | None, config: StepDPOConfig) -> bool:
    """Return whether a reward is that of a wrong answer; some are neither."""
    return reward is not None and reward <= config.wrong_to


def bisection(wrong: Sequence[Step], right: Sequence[Continued]) -> Search:
    """Return the search between the prompt, from which some samples were right, and the wrong end."""
    return Search(tuple(wrong), 0, len(wrong), tuple(right))


def located(wrong: Sequence[Step], error: int, right: Sequence[Continued]) -> Search:
    """Return the search that is left where the first wrong step is known: for right continuations before it.

    Args:
        wrong: steps of a wrong answer.
        error: number of the first wrong one, from 1.
        right: right samples from the prompt, which serve if the first step is wrong.
    """
    return Search(tuple(wrong), error - 1, error, tuple(right) if error == 1 else None)


def narrowed(search: Search, samples: Sequence[Continued], config: StepDPOConfig) -> Search:
    """Return the search after the samples from the prefix that it wanted."""
    prefix = search.wanted
    assert prefix is not None
    right = tuple(one for one in samples if is_right(one.reward, config))
    found = replace(search, tried=(*search.tried, Probe(prefix, len(right), len(samples))))
    if search.right is None or right:
        return replace(found, low=prefix, right=right)
    return replace(found, high=prefix)


class Correction(NamedTuple):
    """A chosen step, with how many right continuations begin with it."""

    step: Step
    support: int
    reward: float | None
    """Of the first of them."""


def corrections(
    search: Search, config: StepDPOConfig, *, whole: Callable[[Step], bool], text: Callable[[Step], str]
) -> list[Correction] | str:
    """Return the steps to prefer to the first wrong one, most support first, or why there are none.

    Args:
        search: that is over.
        config: how many.
        whole: whether a step has an end; one that was cut off is neither chosen nor rejected.
        text: of a step.
    """
    wrong = search.steps[search.high - 1]
    if not whole(wrong):
        return "wrong step was cut off"
    if not search.right:
        return "no right continuation"
    firsts = [one.steps[0] for one in search.right if one.steps and whole(one.steps[0])]
    others = Counter(step for step in firsts if step != wrong)  # of equal counts, the first that was sampled
    if not others:
        return "no other step"
    told = {step: support for step, support in others.items() if text(step).strip() != text(wrong).strip()}
    if not told:
        return "equal texts"
    rewards = {one.steps[0]: one.reward for one in reversed(search.right) if one.steps}
    best = sorted(told, key=lambda step: -told[step])[: config.corrections]
    return [Correction(step, told[step], rewards[step]) for step in best]
