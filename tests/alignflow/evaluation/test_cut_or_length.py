"""What cut-off and length alone predict: hand values, symmetry."""

from math import log

import numpy as np
import pytest

from alignflow.evaluation.cut_or_length import JudgedPairs, cut_or_length

FREE = 1e-9  # a ridge that changes nothing


def pairs(*parts: tuple[int, float, int, int]) -> JudgedPairs:
    """One pair to each prompt: groups of (cut, longer by, wins, losses)."""
    sizes = [wins + losses for *_, wins, losses in parts]
    won = np.concatenate([np.repeat([1.0, 0.0], [wins, losses]) for *_, wins, losses in parts])
    cut = np.repeat([float(each[0]) for each in parts], sizes)
    return JudgedPairs(
        won[:, None], cut[:, None], np.repeat([each[1] for each in parts], sizes)[:, None], cut[:, None] == 0
    )


def test_a_model_of_cut_off_alone_by_hand():
    """The reference alone is cut off in 10 pairs, 9 of them won: log-odds -log 9 for c = -1. The 10 others are even.

    So the prediction is (10 * 0.9 + 10 * 0.5) / 20 = 0.7, although the policy won 9 + 8 of 20.
    """
    judged = pairs((-1, 0.0, 9, 1), (0, 0.0, 8, 2))
    model = cut_or_length({"dpo": judged}, FREE)
    assert model.cut == pytest.approx(-log(9), abs=1e-6)
    assert model.rate(judged) == pytest.approx(0.7, abs=1e-6)
    assert judged.outcomes.mean() == 0.85


def test_a_model_of_length_alone_by_hand():
    """All differ by 8 tokens, so s = 8 and the feature is -+tanh 1. Shorter wins 3 of 4: b = -log 3 / tanh 1."""
    judged = pairs((0, -8.0, 6, 2), (0, 8.0, 1, 3))
    model = cut_or_length({"dpo": judged}, FREE)
    assert (model.scale, model.cut) == (8.0, pytest.approx(0.0, abs=1e-6))
    assert model.length == pytest.approx(-log(3) / np.tanh(1), abs=1e-6)
    assert model.rate(judged) == pytest.approx((8 * 0.75 + 4 * 0.25) / 12, abs=1e-6)


def test_both_features_by_hand():
    """Four groups of 4: cut alone wins 1 of 4 (odds 1/3), length +8 with c = 0 wins 3 of 4; with both, 2 of 4.

    a = -log 3 and b' = log 3 give odds 1/3, 3 and 1: all groups are met exactly.
    """
    judged = pairs((1, 0.0, 1, 3), (0, 8.0, 3, 1), (1, 8.0, 2, 2))
    model = cut_or_length({"dpo": judged}, FREE)
    assert model.scale == pytest.approx(8 * (2 / 3) ** 0.5)
    assert model.cut == pytest.approx(-log(3), abs=1e-6)
    assert model.length * np.tanh(8 / model.scale) == pytest.approx(log(3), abs=1e-6)


def test_one_model_serves_all_policies_and_each_prompt_counts_once():
    """Policy a: 8 prompts, one pair, reference cut, 6 won. Policy b: 2 prompts of two pairs, reference cut, all won.

    Weighted 6 + 2 wins of 10 prompts: odds 4. By pairs it would be 10 of 12, odds 5.
    """
    a = pairs((-1, 0.0, 6, 2))
    ones, zeros = np.ones((2, 2)), np.zeros((2, 2))
    b = JudgedPairs(ones, -ones, zeros, zeros.astype(bool))
    model = cut_or_length({"a": a, "b": b}, FREE)
    assert model.cut == pytest.approx(-log(4), abs=1e-6)
    assert model.rate(a) == model.rate(b) == pytest.approx(0.8, abs=1e-6)


def test_swapping_the_sides_mirrors_the_prediction():
    judged = pairs((-1, 5.0, 9, 1), (0, -7.0, 5, 3), (1, 2.0, 1, 2))
    swapped = JudgedPairs(1 - judged.outcomes, -judged.cut, -judged.extra, judged.complete)
    there, back = (cut_or_length({"dpo": each}, 0.1) for each in (judged, swapped))
    assert (there.cut, there.length) == pytest.approx((back.cut, back.length))
    assert there.rate(judged) + back.rate(swapped) == pytest.approx(1)


def test_pairs_that_a_judge_did_not_see_change_nothing():
    judged = pairs((-1, 4.0, 9, 1), (0, -4.0, 8, 2))

    def beside(array, fill):
        return np.hstack((array, np.full_like(array, fill)))

    more = JudgedPairs(
        beside(judged.outcomes, np.nan), beside(judged.cut, 1), beside(judged.extra, 99), beside(judged.complete, True)
    )
    one, other = (cut_or_length({"dpo": each}, 0.1) for each in (judged, more))
    assert one == other
    assert one.rate(judged) == other.rate(more)


def test_a_cut_off_that_decides_everything_stays_finite():
    model = cut_or_length({"dpo": pairs((-1, 0.0, 20, 0))}, 0.1)
    assert -10 < model.cut < -3


def test_without_a_pair_there_is_nothing_to_fit():
    with pytest.raises(ValueError, match="no pair"):
        cut_or_length({"dpo": JudgedPairs(*(np.full((1, 1), np.nan) for _ in range(3)), np.ones((1, 1), bool))}, 0.1)
