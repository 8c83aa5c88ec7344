"""Sides of the split: by prompt alone, whatever else is in the data."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignflow.data.split import Side, draw, sides

PROMPTS = [f"prompt {i}" for i in range(4000)]


def split(prompts, *, seed=1, validation=0.2, judge=0.25, test=0.2):
    draws = np.array([draw(prompt, seed) for prompt in prompts], np.uint64)
    return sides(draws, validation_fraction=validation, judge_fraction=judge, test_fraction=test).tolist()


def test_a_draw_is_cut_at_the_fractions():
    """Validation below 0.2; of the other 0.8 a quarter, so up to 0.4, for the judge; the test above 0.9."""
    draws = (np.array([0.1, 0.19, 0.21, 0.39, 0.41, 0.89, 0.91, 0.99]) * 2.0**64).astype(np.uint64)
    found = sides(draws, validation_fraction=0.2, judge_fraction=0.25, test_fraction=0.1).tolist()
    assert found == [Side.VALIDATION] * 2 + [Side.JUDGE] * 2 + [Side.TRAIN] * 2 + [Side.TEST] * 2


def test_shares_are_those_asked_for():
    """Of 4000 prompts 800 ± 4 · 25 go to each of three sides."""
    found = split(PROMPTS)
    for side in (Side.VALIDATION, Side.JUDGE, Side.TEST):
        assert abs(found.count(side) - 800) < 100


def test_no_judge_and_no_test_is_given_anything_when_its_share_is_none():
    """Not even the highest draw of all, which rounds to a share of 1."""
    assert Side.JUDGE not in split(PROMPTS, judge=0.0)
    assert Side.TEST not in split(PROMPTS, test=0.0)
    highest = sides(np.array([2**64 - 1], np.uint64), validation_fraction=0.2, judge_fraction=0.2, test_fraction=0.0)
    assert highest.tolist() == [Side.TRAIN]


def test_a_test_side_takes_prompts_from_training_alone():
    for before, after in zip(split(PROMPTS, test=0.0), split(PROMPTS, test=0.3), strict=True):
        assert after == before or (before, after) == (Side.TRAIN, Side.TEST)


def test_another_seed_splits_otherwise_and_a_larger_share_keeps_who_was_there():
    assert split(PROMPTS) != split(PROMPTS, seed=2)
    for side, larger in ((Side.VALIDATION, split(PROMPTS, validation=0.3)), (Side.TEST, split(PROMPTS, test=0.3))):
        assert all(after == side for before, after in zip(split(PROMPTS), larger, strict=True) if before == side)


@given(st.text(), st.integers(0, 9))
def test_case_and_spaces_do_not_move_a_prompt(text: str, seed: int):
    assert draw(f"  {text}\n", seed) == draw(text, seed)
    assert draw("Two  Words", seed) == draw("two words", seed)
