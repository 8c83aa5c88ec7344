"""Sides of the split: by prompt alone, whatever else is in the data."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignflow.data.split import Side, draw, sides

PROMPTS = [f"prompt {i}" for i in range(4000)]


def split(prompts, *, seed=1, eval_fraction=0.2, judge_fraction=0.25):
    draws = np.array([draw(prompt, seed) for prompt in prompts], np.uint64)
    return sides(draws, eval_fraction=eval_fraction, judge_fraction=judge_fraction).tolist()


def test_a_draw_is_cut_at_the_fractions():
    """Eval below 0.2; of the other 0.8 a quarter, so up to 0.4, for the judge."""
    draws = (np.array([0.1, 0.19, 0.21, 0.39, 0.41, 0.99]) * 2.0**64).astype(np.uint64)
    found = sides(draws, eval_fraction=0.2, judge_fraction=0.25)
    assert found.tolist() == [Side.EVAL, Side.EVAL, Side.JUDGE, Side.JUDGE, Side.TRAIN, Side.TRAIN]


def test_shares_are_those_asked_for():
    """Of 4000 prompts 800 ± 4 · 25 are evaluated on and as many go to the judge."""
    found = split(PROMPTS)
    assert abs(found.count(Side.EVAL) - 800) < 100
    assert abs(found.count(Side.JUDGE) - 800) < 100


def test_no_judge_is_given_anything_when_its_share_is_none():
    assert Side.JUDGE not in split(PROMPTS, judge_fraction=0.0)


def test_another_seed_splits_otherwise_and_a_larger_share_keeps_who_was_there():
    assert split(PROMPTS) != split(PROMPTS, seed=2)
    larger = split(PROMPTS, eval_fraction=0.3)
    assert all(after == Side.EVAL for before, after in zip(split(PROMPTS), larger, strict=True) if before == Side.EVAL)


@given(st.text(), st.integers(0, 9))
def test_case_and_spaces_do_not_move_a_prompt(text: str, seed: int):
    assert draw(f"  {text}\n", seed) == draw(text, seed)
    assert draw("Two  Words", seed) == draw("two words", seed)
