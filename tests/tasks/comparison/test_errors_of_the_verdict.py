"""How often the verdict errs: simulated policies whose truth is known, through the real tests and standings.

Judges are kin: their opinions on the quality of an answer correlate by 0.8, so they agree on about 80 % of complete
pairs; a policy's gain varies from prompt to prompt in the same way for all, and all punish a cut-off alike.
"""

from collections import Counter

import pytest

from tasks.comparison.verdict import Standing
from tests.tasks.comparison.simulated import World, gain, standings

ENDS = World(cut=(0.61, 0.15))
"""The policy ends its answers, and is the reference in everything else."""
SHORT = World(longer=-12, liking=-0.05)
"""The policy is shorter, judges like short answers, and that is all."""
CONTENT = World(gain=gain(0.6), cut=(0.05, 0.03))
"""The policy's content wins on 60 % of complete pairs; few answers reach the limit."""


def found(world: World, experiments: int, *, prompts: int, samples: int, policies: int = 1) -> Counter[Standing]:
    """Count standings; 100 resamples are few, but the quantiles err to both sides."""
    return Counter(
        each
        for seed in range(experiments)
        for each in standings(seed, world, prompts, samples, policies, resamples=100)
    )


@pytest.mark.parametrize(("world", "name"), [(ENDS, Standing.ENDS), (SHORT, Standing.LENGTH)])
def test_a_policy_that_only_ends_its_answers_or_is_shorter_is_not_better(world, name):
    """12 experiments at an error of at most 2.5 %: two or more errors less than once in 28 sets of seeds."""
    counts = found(world, 12, prompts=250, samples=1)
    assert counts[Standing.BETTER] <= 1
    assert counts[name] >= 9


def test_a_policy_of_better_content_is_found():
    """At a power of 0.95 fewer than 8 of 10 are found once in 87 sets of seeds."""
    assert found(CONTENT, 10, prompts=250, samples=2)[Standing.BETTER] >= 8


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "samples"), [(250, 1), (120, 2), (250, 2)])
@pytest.mark.parametrize("world", [ENDS, SHORT, World(cut=(0.61, 0.15), longer=10, liking=0.05)])
def test_errors_stay_below_the_nominal_rate(world, prompts, samples):
    """40 families of 4 policies at an error of 2.5 %: 4 of 160 on average; above 11 once in 1000 if independent."""
    counts = found(world, 40, prompts=prompts, samples=samples, policies=4)
    assert counts[Standing.BETTER] <= 11


@pytest.mark.slow
def test_four_policies_of_better_content_are_found():
    """The power is that of one policy out of four that are tested together."""
    counts = found(CONTENT, 50, prompts=250, samples=2, policies=4)
    assert counts[Standing.BETTER] >= 0.8 * counts.total()
