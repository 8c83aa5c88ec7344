"""A head that is fitted on states of a frozen adapter."""

from dataclasses import replace
from pathlib import Path

import torch

from alignflow.algorithms.reward_model import RewardModelConfig
from alignflow.loops.head import fit_head, last_states
from alignflow.models.heads import scalar_head
from alignflow.types import Pair
from tests.close import FLOAT32, close
from tests.tiny import disturb, open_base
from tests.toy import CONFIG, enough

PLAIN = RewardModelConfig(center_coef=0.0, margin_coef=0.0)


def test_the_states_are_what_the_head_turns_into_scores(tiny: Path):
    models = open_base(tiny)
    models.add("reward_model")
    disturb(models, "reward_model")
    models.add_head("reward_model", seed=1)
    pairs = [Pair((5, 6), (7, 8, 9), (10,)), Pair((5, 6, 7, 8), (11,), (12, 13))]
    states = last_states(models, "reward_model", pairs, enough(16))
    with torch.no_grad():
        from alignflow.data.collate import collate_pairs

        expected = models.scores("reward_model", collate_pairs(pairs))
        found = models.heads["reward_model"](states)[:, :, 0]
    close(found.flatten(), expected, FLOAT32)


def test_a_head_learns_what_separates_the_states_and_repeats_itself():
    """Chosen and rejected differ by +1 and −1 in the third of five numbers, under less noise in the others."""
    noise = 0.3 * torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))
    noise[:, :, 2] = torch.tensor([[1.0], [-1.0]])

    def fitted() -> torch.nn.Linear:
        head = scalar_head(5, seed=0, device=torch.device("cpu"))
        fit_head(head, noise, torch.zeros(40), replace(CONFIG, steps=60), PLAIN)
        return head

    weight = fitted().weight.detach()[0]
    assert weight[2] > 0.5
    assert weight[2] > 3 * weight[[0, 1, 3, 4]].abs().max()
    assert weight.equal(fitted().weight.detach()[0])


def test_a_first_step_moves_each_weight_against_its_gradient_by_the_rate():
    """From weight 0, AdamW's first step is ± the rate, towards the chosen state (2, −3)."""
    head = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(head.weight)
    states = torch.tensor([[[2.0, -3.0]], [[0.0, 0.0]]])
    one = replace(CONFIG, steps=1, batch_size=1, learning_rate=0.01, warmup_fraction=0.0, weight_decay=0.0)
    fit_head(head, states, torch.zeros(1), one, PLAIN)
    close(head.weight.detach()[0], [0.01, -0.01], FLOAT32)
