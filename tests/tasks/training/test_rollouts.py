"""What the on-policy stages share."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from alignflow.data.collate import collate
from alignflow.loops.by_rows import RowPasses
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.sampling.own import Response
from alignflow.types import Example
from tasks.params.edit import override
from tasks.params.read import load
from tasks.paths import REWARD_MODEL
from tasks.ppo import add_critic
from tasks.training.rewards import Reward
from tasks.training.rollouts import rollouts
from tasks.training.samples import Sample
from tests.close import EXACT, close
from tests.tiny import disturb, open_base, some_rows

BUDGET = Budget(4096, pytest.fail)


def test_policy_and_reference_of_equal_weights_are_asked_once(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    models, batch = open_base(tiny), some_rows()
    for role in ("policy", "reference"):
        models.add(role)
        disturb(models, role, 1)
    asked = Mock(side_effect=models.logprobs)
    monkeypatch.setattr(models, "logprobs", asked)
    alike = RowPasses(models, 0.7, BUDGET).policy_and_reference(batch)
    assert [call.args[0] for call in asked.call_args_list] == ["policy"]
    close(alike[1], SharedBase.logprobs(models, "reference", batch, 0.7)[0], EXACT)
    disturb(models, "policy", 2)
    mine, other = RowPasses(models, 0.7, BUDGET).policy_and_reference(batch)
    assert [call.args[0] for call in asked.call_args_list[1:]] == ["policy", "reference"]
    close(other, alike[1], EXACT)
    assert not mine.equal(other)


def test_rollouts_keep_what_the_sampler_said_of_each_token():
    """Prompts of 1 and 3 tokens with responses of 3 and 1: S = 4, and column t belongs to token t + 1."""
    examples = [Example((1,), (2, 3, 4)), Example((1, 2, 3), (4,))]
    said = [(-1.0, -2.0, -3.0), (-4.0,)]
    samples = [
        Sample({}, example, Response(example.response, penalty > 0, values), "", Reward(1.0, {}, penalty))
        for example, values, penalty in zip(examples, said, (0.0, 0.5), strict=True)
    ]
    found = rollouts(samples, [1.0, 1.0], torch.device("cpu"))
    close(found.penalties, [0.0, 0.5], EXACT)
    close(found.sampled_logprobs, [[-1.0, -2.0, -3.0], [0.0, 0.0, -4.0]], EXACT)
    close(found.sequences.input_ids, collate(examples).input_ids, EXACT)


def test_the_critic_starts_at_what_the_reward_model_adds_to_the_reward(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Weight 0.25 of (score + 0.4) / 2, on the token where the reward model reads its score."""
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    override(Path("params.yaml"), ["rewards.reward_model=0.25", "rewards.rules={brevity: 0.5}"])
    models = open_base(tiny)
    models.add("reward_model")
    models.add_head("reward_model", seed=1)
    disturb(models, "reward_model")
    models.save("reward_model", REWARD_MODEL)
    (REWARD_MODEL / "normalization.json").write_text('{"mean": -0.4, "std": 2.0, "trained": true}')
    add_critic(models, load(Path("params.yaml")))
    examples = [Example((5, 6), (7, 8, 9)), Example((5, 6, 10), (11,))]
    with torch.no_grad():
        scores = models.scores("reward_model", collate(examples))
        values = models.values("critic", collate([Example(e.prompt, (*e.response, 12)) for e in examples]))
    last = [len(e.prompt) + len(e.response) - 1 for e in examples]
    close(values[[0, 1], last], 0.25 * (scores + 0.4) / 2)
