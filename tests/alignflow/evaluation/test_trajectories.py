"""Algorithms along their training: equal KL and over-optimisation by hand, and on noise."""

import numpy as np
import pytest

from alignflow.evaluation.trajectories import Trajectory, at_equal_kl, over_optimised
from alignflow.evaluation.win_rates import Resampling

RESAMPLING = Resampling(samples=500, confidence=0.95, seed=7)


def constant(kl: list[float], *, prompts: int = 3, **values: list[float]) -> Trajectory:
    """A trajectory whose prompts all have the same values."""
    return Trajectory(
        np.repeat(np.array(kl)[:, None], prompts, axis=1),
        {name: np.repeat(np.array(each)[:, None], prompts, axis=1) for name, each in values.items()},
    )


def noisy(steps: int, proxy: float, judge: float, random: np.random.Generator, prompts: int = 40) -> Trajectory:
    """Snapshots whose means change by a slope per step; each prompt has noise with standard deviation 1."""
    slope = np.arange(steps)[:, None]
    return Trajectory(
        np.repeat(np.arange(steps, dtype=float)[:, None], prompts, axis=1),
        {
            "score": proxy * slope + random.normal(size=(steps, prompts)),
            "judge": judge * slope + random.normal(size=(steps, prompts)),
        },
    )


def test_equal_kl_by_hand():
    """The smaller final KL is 1, so two levels are 1/4 and 1: halfway and whole in the square root.

    A goes from 0 to 2 while sqrt(KL) goes from 0 to 2: 0.5 at 1/2 and 1.0 at 1. B goes from 0 to 0.6 at 1.
    """
    paths = {"a": constant([0, 4], judge=[5.0, 7.0]), "b": constant([0, 1], judge=[5.0, 5.6])}
    found = at_equal_kl(paths, "judge", 2, RESAMPLING)
    assert found is not None
    assert found.levels == (0.25, 1.0)
    assert [gain.value for gain in found.gains["a"]] == pytest.approx([0.5, 1.0])
    assert [gain.value for gain in found.gains["b"]] == pytest.approx([0.3, 0.6])
    lead = found.leads[-1]
    assert (lead.first, lead.second) == ("a", "b")
    assert (lead.difference.value, lead.difference.interval.low) == pytest.approx((0.4, 0.4))


def test_a_snapshot_in_between_bends_the_path():
    """At KL 4 halfway (in the square root) between KL 1 with gain 3 and KL 9 with gain 1: 2."""
    paths = {"a": constant([0, 1, 9], judge=[0, 3, 1]), "b": constant([0, 4], judge=[0, 1])}
    found = at_equal_kl(paths, "judge", 1, RESAMPLING)
    assert found is not None
    assert found.gains["a"][0].value == pytest.approx(2.0)


def test_a_path_that_comes_back_is_read_where_it_first_reaches_the_level():
    """KL 0, 4, 1: the level 1 is first reached on the way to 4, halfway in the square root."""
    paths = {"a": constant([0, 4, 1], judge=[0, 2, 9]), "b": constant([0, 4], judge=[0, 0])}
    found = at_equal_kl(paths, "judge", 1, RESAMPLING)
    assert found is not None
    assert found.levels == (1.0,)
    assert found.gains["a"][0].value == pytest.approx(1.0)
    paths["a"] = constant([0, 4, 0.25, 1], judge=[0, 2, 9, 9])  # it falls below the level again in between
    found = at_equal_kl(paths, "judge", 1, RESAMPLING)
    assert found is not None
    assert found.gains["a"][0].value == pytest.approx(1.0)


def test_a_lead_is_compared_prompt_by_prompt():
    """Both gain 0 or 2 on the same half of the prompts, one 0.1 more: the gains are uncertain, the lead is not."""
    gain = np.repeat([0.0, 2.0], 20)
    kl = np.repeat([[0.0], [1.0]], 40, axis=1)
    paths = {
        "a": Trajectory(kl, {"judge": np.stack((np.zeros(40), gain + 0.1))}),
        "b": Trajectory(kl, {"judge": np.stack((np.zeros(40), gain))}),
    }
    found = at_equal_kl(paths, "judge", 1, RESAMPLING)
    assert found is not None
    spread, lead = found.gains["a"][0].interval, found.leads[0].difference.interval
    assert spread.high - spread.low > 0.4
    assert (lead.low, lead.high) == pytest.approx((0.1, 0.1))


def test_there_is_nothing_to_compare_without_two_that_moved():
    moved, still = constant([0, 1], judge=[0, 1]), constant([0, 0], judge=[0, 0])
    assert at_equal_kl({}, "judge", 2, RESAMPLING) is None
    assert at_equal_kl({"a": moved, "b": still}, "judge", 2, RESAMPLING) is None


def test_paths_on_other_prompts_are_refused():
    paths = {"a": constant([0, 1], judge=[0, 1]), "b": constant([0, 1], prompts=4, judge=[0, 1])}
    with pytest.raises(ValueError, match="different numbers of prompts"):
        at_equal_kl(paths, "judge", 2, RESAMPLING)


def test_the_interval_at_equal_kl_covers_the_truth():
    """100 experiments: gain 0.5 at KL 1 with noise of deviation 1 on 60 prompts. Binomial(100, 0.05) misses."""
    random, misses = np.random.default_rng(1), 0
    kl = np.repeat([[0.0], [1.0]], 60, axis=1)
    for seed in range(100):
        paths = {
            name: Trajectory(kl, {"judge": np.stack((np.zeros(60), 0.5 + random.normal(size=60)))}) for name in "ab"
        }
        found = at_equal_kl(paths, "judge", 1, Resampling(400, 0.95, seed))
        assert found is not None
        interval = found.gains["a"][0].interval
        misses += not interval.low <= 0.5 <= interval.high
    assert misses <= 14


def test_a_judge_that_falls_while_the_proxy_rises_is_seen_from_its_peak():
    """The judge climbs to 3 and falls to 1, the proxy climbs throughout: -2 and +1 since snapshot 2."""
    path = constant([0, 1, 2, 3], score=[0, 1, 2, 3], judge=[0, 1, 3, 1])
    fall = over_optimised(path, "score", "judge", RESAMPLING)
    assert fall is not None
    assert (fall.since, fall.judge, fall.proxy) == (2, -2.0, 1.0)


def test_a_judge_that_falls_below_the_start_is_seen_from_the_start():
    fall = over_optimised(constant([0, 1], score=[0, 1], judge=[0, -1]), "score", "judge", RESAMPLING)
    assert fall is not None
    assert fall.since == 0


def test_a_fall_of_both_and_a_rise_of_both_are_no_over_optimisation():
    for score, judge in (([0, 2, 1], [0, 2, 1]), ([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [0, 1, 1])):
        assert over_optimised(constant([0, 1, 2], score=score, judge=judge), "score", "judge", RESAMPLING) is None


def test_a_reference_without_snapshots_cannot_be_over_optimised():
    assert over_optimised(constant([0], score=[0], judge=[0]), "score", "judge", RESAMPLING) is None


def test_noise_around_a_steady_judge_is_seldom_taken_for_a_fall_and_a_real_fall_is_found():
    """200 steady judges with 5 snapshots: at most 2.5 % one-sided, Binomial(200, 0.025) stays below 14."""
    random = np.random.default_rng(3)
    steady = [over_optimised(noisy(6, 1.0, 0.0, random), "score", "judge", RESAMPLING) for _ in range(200)]
    falling = [over_optimised(noisy(6, 1.0, -0.5, random), "score", "judge", RESAMPLING) for _ in range(20)]
    assert sum(each is not None for each in steady) < 14
    assert all(each is not None for each in falling)
