"""The settings of a run over several training seeds."""

from collections.abc import Sequence
from itertools import count, islice

from tasks.params.read import ParamsError
from tasks.params.sections import Params
from tasks.policies import POLICIES


def training_seeds(params: Params) -> dict[str, int]:
    """Return the keys that vary over seeds, with their values: of the reward model and of all trained policies.

    SFT keeps its seed, because every method is compared with it and starts from it. The data, the judges and the
    evaluation keep theirs, because they measure.
    """
    trained = [name for name, policy in POLICIES.items() if policy.learns and name in params.policies]
    return {f"{section}.seed": getattr(params, section).seed for section in ("reward_model", *trained)}


def over_seeds(params: Params, seeds: int, given: Sequence[str]) -> list[tuple[str, ...]]:
    """Return for each seed the assignments that set it; the first keeps the values of ``params.yaml``.

    The reward model never gets the seed of the judge model.

    Args:
        params: checked settings.
        seeds: how many.
        given: assignments of the user.

    Raises:
        ParamsError: an assignment sets a seed that varies.
    """
    keys = training_seeds(params)
    for key in (assignment.partition("=")[0] for assignment in given):
        if key in keys:
            raise ParamsError(
                f"{key}: --seeds sets it; its first value is that of params.yaml (`alignflow set {key}=…` changes it)"
            )
    free = (step for step in count(0, params.seeds.step) if params.reward_model.seed + step != params.judge_model.seed)
    return [tuple(f"{key}={seed + step}" for key, seed in keys.items()) for step in islice(free, seeds)]
