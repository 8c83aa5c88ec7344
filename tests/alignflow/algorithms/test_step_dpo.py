"""Step-DPO: where the first wrong step is, and which step corrects it."""

import math
import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignflow.algorithms.step_dpo import (
    Continued,
    Correction,
    Probe,
    Search,
    StepDPOConfig,
    bisection,
    corrections,
    is_right,
    is_wrong,
    located,
    narrowed,
)

CONFIG = StepDPOConfig(right_from=1.0, wrong_to=0.0, corrections=1)
A, B, C, D = ((10 * k, 1) for k in range(1, 5))
RIGHT = Continued((A, B), 1.0)
Alive = Callable[[int], float]


def right(*steps: tuple[int, ...], reward: float = 1.0) -> Continued:
    return Continued(steps, reward)


def searched(steps: int, alive: Alive, m: int = 1, draw: random.Random | None = None) -> Search:
    """Run a bisection where a continuation from a prefix is right with a given probability."""
    draw = draw or random.Random(0)
    search = bisection([(k, 1) for k in range(steps)], [RIGHT])
    while (prefix := search.wanted) is not None:
        samples = [right() if draw.random() < alive(prefix) else right(reward=-1.0) for _ in range(m)]
        search = narrowed(search, samples, CONFIG)
    return search


def test_an_answer_between_right_and_wrong_is_neither():
    assert [is_right(r, CONFIG) for r in (1.0, 0.1, 0.0, None)] == [True, False, False, False]
    assert [is_wrong(r, CONFIG) for r in (1.0, 0.1, 0.0, None)] == [False, False, True, False]


@given(steps=st.integers(1, 40), data=st.data())
def test_bisection_finds_the_first_dead_prefix_as_a_scan_of_all_does(steps: int, data: st.DataObject):
    """In at most the next whole number above log2 of the steps calls."""
    first = data.draw(st.integers(1, steps))
    found = searched(steps, lambda prefix: float(prefix < first))
    scan = next(k for k in range(1, steps + 1) if not k < first)
    assert found.high == scan == first
    assert found.low == first - 1
    assert len(found.tried) <= math.ceil(math.log2(steps)) if steps > 1 else not found.tried


def test_a_search_by_hand():
    """Five steps, the third is wrong: prefixes 2 (alive), 3 (dead) are tried."""
    found = searched(5, lambda prefix: float(prefix < 3), m=2)
    assert found.tried == (Probe(2, 2, 2), Probe(3, 0, 2))
    assert (found.low, found.high) == (2, 3)


def test_an_answer_of_one_step_needs_no_sample():
    assert searched(1, lambda _: 1.0).tried == ()


def test_a_living_prefix_looks_dead_as_often_as_all_continuations_fail():
    """Two steps, the second wrong, prefix 1 right at q = 0.3: m = 4 finds step 1 with probability 0.7^4 = 0.24."""
    draw, runs, q, m = random.Random(7), 2000, 0.3, 4
    missed = sum(searched(2, lambda _: q, m, draw).high == 1 for _ in range(runs))
    p = (1 - q) ** m
    assert abs(missed - runs * p) < 3.29 * math.sqrt(runs * p * (1 - p))  # 99.9 %


def test_a_known_error_asks_for_right_continuations_before_it():
    search = located([A, B, C], 2, [RIGHT])
    assert (search.wanted, search.low, search.high) == (1, 1, 2)
    search = narrowed(search, [right(D, reward=-1.0), right(C)], CONFIG)
    assert search.wanted is None
    assert search.right == (right(C),)
    assert search.tried == (Probe(1, 1, 2),)
    first = located([A, B], 1, [RIGHT])
    assert (first.wanted, first.right) == (None, (RIGHT,))


def test_the_right_ones_are_those_of_the_longest_living_prefix():
    search = bisection([A, B, C, D], [right(D)])
    search = narrowed(search, [right(C), right(B, reward=0.1)], CONFIG)
    assert (search.low, search.right, search.wanted) == (2, (right(C),), 3)
    search = narrowed(search, [right(reward=0.0)], CONFIG)
    assert (search.low, search.high, search.right) == (2, 3, (right(C),))


def over(wrong: Sequence[tuple[int, ...]], firsts: Sequence[Continued]) -> Search:
    return Search(tuple(wrong), len(wrong) - 1, len(wrong), tuple(firsts))


def choose(search: Search, config: StepDPOConfig = CONFIG) -> list[Correction] | str:
    return corrections(search, config, whole=lambda step: step[-1] == 1, text=lambda step: str(step[0] // 10))


def test_the_step_that_most_right_continuations_begin_with_is_chosen():
    found = over([A, B], [right(C, A), right(D), right(D, A, reward=2.0), right(B)])
    assert choose(found) == [Correction(D, 2, 1.0)]
    assert choose(found, StepDPOConfig(1.0, 0.0, 2)) == [Correction(D, 2, 1.0), Correction(C, 1, 1.0)]
    assert choose(over([A], [right(C), right(D)])) == [Correction(C, 1, 1.0)]  # equal support: the first


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        (over([A, (30, 2)], [right(D)]), "wrong step was cut off"),
        (over([A], []), "no right continuation"),
        (over([A], [right(A, B)]), "no other step"),
        (over([A], [right((20, 2))]), "no other step"),  # it was cut off
        (over([A], [right()]), "no other step"),
        (over([A], [right((11, 1)), right((12, 1))]), "equal texts"),
    ],
)
def test_why_an_error_gives_no_pair(search: Search, reason: str):
    assert choose(search) == reason
