"""Means over seeds and prompts: hand values, coverage on simulated seeds and prompts, planted effects."""

import numpy as np
import pytest

from alignflow.evaluation.seeds import of_seeds, over_seeds

SIMULATED = 1000


def simulated(seeds, prompts, *, mean, of_seed, of_prompt, rest, random):
    """Values with effects of seed, prompt and both; each of the given deviation."""
    return (
        mean
        + of_seed * random.standard_normal((seeds, 1))
        + of_prompt * random.standard_normal((1, prompts))
        + rest * random.standard_normal((seeds, prompts))
    )


def test_errors_by_hand():
    """Seeds' means 0.2, 0.4, 0.6: deviation 0.2, error 0.2 / sqrt 3. Prompts' means 0.3 and 0.5: deviation
    0.1 sqrt 2, error 0.1. Quantiles t(2) = 4.303 and t(1) = 12.706 at 97.5 %:
    sqrt((4.303 * 0.11547)^2 + (12.706 * 0.1)^2) = sqrt(0.24688 + 1.61448) = 1.36432.
    """
    found = over_seeds(np.array([[0.1, 0.3], [0.3, 0.5], [0.5, 0.7]]))
    assert found.by_seed == pytest.approx((0.2, 0.4, 0.6))
    assert found.value == pytest.approx(0.4)
    assert found.seed_error == pytest.approx(0.2 / 3**0.5)
    assert found.prompt_error == pytest.approx(0.1)
    assert found.reach(0.95) == pytest.approx(1.36432, abs=2e-4)


def test_without_differences_of_prompts_it_is_students_interval():
    """Student's table: t(2) = 4.303 at 95 %. Distance 4.303 errors from the null is p = 0.05."""
    found = of_seeds([0.1, 0.2, 0.3], prompt_error=0.0, prompts=100)
    error = 0.1 / 3**0.5
    assert found.reach(0.95) == pytest.approx(4.303 * error, rel=1e-3)
    assert found.p_value(0.2 - 4.303 * error) == pytest.approx(0.05, abs=1e-4)


def test_without_differences_of_seeds_it_is_the_interval_over_prompts():
    """The normal table, for many prompts: 1.960 errors at 95 %."""
    found = of_seeds([0.2, 0.2, 0.2], prompt_error=0.01, prompts=100_000)
    assert found.reach(0.95) == pytest.approx(0.0196, rel=1e-3)
    assert found.p_value(0.2 - 0.0196) == pytest.approx(0.05, abs=1e-3)


def test_a_prompt_without_a_value_is_left_out_where_it_has_none():
    """Seeds' means 1, 3 and 2; prompts' means (1 + 3) / 2 and (3 + 1) / 2; the third prompt has no value at all."""
    nan = np.nan
    found = over_seeds(np.array([[1.0, 1.0, nan], [3.0, 3.0, nan], [nan, 2.0, nan], [1.0, 3.0, nan]])[[0, 1, 3]])
    assert found.by_seed == pytest.approx((1, 3, 2))
    assert found.prompts == 2
    with pytest.raises(ValueError, match="two seeds and prompts"):
        over_seeds(np.array([[1.0, 1.0], [nan, 2.0]]))


def test_without_any_spread_nothing_is_shown():
    assert of_seeds([1.0, 1.0, 1.0], prompt_error=0.0, prompts=3).p_value(0.5) == 1.0


def test_p_value_and_interval_agree():
    found = of_seeds([0.55, 0.62, 0.66], prompt_error=0.02, prompts=120)
    low = found.interval(0.9).low
    assert found.p_value(low) == pytest.approx(0.1, abs=1e-9)
    assert found.p_value(found.value) == 1.0


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("of_seed", "of_prompt", "rest"), [(0.0, 0.3, 0.3), (0.03, 0.4, 0.1), (0.1, 0.3, 0.3), (0.2, 0.1, 0.3), (0, 0, 0.4)]
)
def test_the_interval_contains_seeds_and_prompts(seeds, of_seed, of_prompt, rest):
    """At least 93 % of intervals at 95 % contain the mean over all seeds and all prompts."""
    random = np.random.default_rng(3)
    held = 0
    for _ in range(SIMULATED):
        values = simulated(seeds, 120, mean=0.1, of_seed=of_seed, of_prompt=of_prompt, rest=rest, random=random)
        interval = over_seeds(values).interval(0.95)
        held += interval.low <= 0.1 <= interval.high
    assert held / SIMULATED >= 0.93


def test_the_spread_over_seeds_alone_misses_the_prompts():
    """Prompts are common to all seeds, so a t interval over three seeds (4.303 errors) is too narrow for others."""
    random = np.random.default_rng(3)
    held = 0
    for _ in range(SIMULATED):
        found = over_seeds(simulated(3, 120, mean=0.1, of_seed=0.02, of_prompt=0.3, rest=0.3, random=random))
        held += abs(found.value - 0.1) <= 4.303 * found.seed_error
    assert held / SIMULATED < 0.9


def test_a_planted_effect_is_found():
    """A win rate of 0.65, 250 prompts, seeds that deviate by 0.02: found with 3 seeds more often than not, with 5 in
    more than 95 % of cases."""
    random = np.random.default_rng(5)
    found = {
        seeds: np.mean(
            [
                over_seeds(
                    simulated(seeds, 250, mean=0.65, of_seed=0.02, of_prompt=0.3, rest=0.3, random=random)
                ).p_value(0.5)
                < 0.05
                for _ in range(200)
            ]
        )
        for seeds in (3, 5)
    }
    assert found[3] > 0.5
    assert found[5] > 0.95


def test_a_planted_null_is_confirmed_and_no_effect_is():
    """Margin 0.03. No difference on many prompts is confirmed by most of the runs with five seeds; a true difference
    of the margin itself in at most 5 % (the test's level), here with a sampling error of 1.5 %."""
    random = np.random.default_rng(7)

    def confirmed(mean):
        runs = [
            over_seeds(simulated(5, 2000, mean=mean, of_seed=0.005, of_prompt=0.2, rest=0.2, random=random))
            for _ in range(200)
        ]
        return np.mean([each.equivalent(0.5, 0.03, 0.95) for each in runs])

    assert confirmed(0.5) > 0.9
    assert confirmed(0.53) <= 0.08
    assert not of_seeds([0.5, 0.5], prompt_error=1e-6, prompts=100).equivalent(0.5, 0.03, 0.95)  # two seeds
