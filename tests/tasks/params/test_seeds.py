"""Which settings a run over seeds varies."""

import shutil
from pathlib import Path

import pytest

from tasks.params.edit import override
from tasks.params.read import ParamsError, load
from tasks.params.seeds import over_seeds

FILE = Path(__file__).resolve().parents[3] / "params.yaml"


@pytest.fixture
def path(tmp_path):
    return Path(shutil.copy(FILE, tmp_path / "params.yaml"))


def test_reward_model_and_chosen_policies_vary_and_what_measures_does_not(path):
    override(path, ["policies=dpo,grpo", "dpo.seed=5", "seeds.step=10"])
    assert over_seeds(load(path), 3, []) == [
        ("reward_model.seed=1", "dpo.seed=5", "grpo.seed=1"),
        ("reward_model.seed=11", "dpo.seed=15", "grpo.seed=11"),
        ("reward_model.seed=21", "dpo.seed=25", "grpo.seed=21"),
    ]


def test_the_reward_model_never_gets_the_seed_of_the_judge(path):
    override(path, ["policies=dpo", "judge_model.seed=11", "seeds.step=10"])
    assert [each[0] for each in over_seeds(load(path), 3, [])] == [f"reward_model.seed={n}" for n in (1, 21, 31)]
    for each in over_seeds(load(path), 3, []):
        override(path, each)  # the settings are valid


def test_more_seeds_begin_with_the_same_ones(path):
    params = load(path)
    assert over_seeds(params, 5, [])[:3] == over_seeds(params, 3, [])


def test_an_override_of_a_seed_that_varies_is_refused_by_name(path):
    with pytest.raises(ParamsError, match=r"ppo\.seed: --seeds sets it"):
        over_seeds(load(path), 3, ["dpo.beta=0.2", "ppo.seed=4"])
    over_seeds(load(path), 3, ["sft.seed=4", "evaluate.seed=3"])
