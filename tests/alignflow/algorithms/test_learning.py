"""DPO and the reward model learn eight pairs on the tiny model."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.algorithms import dpo, reward_model
from alignflow.data.collate import collate_pairs
from alignflow.loops import offline
from alignflow.loops.by_rows import by_rows
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.optim import adamw
from alignflow.types import OfflineAlgorithm, Pair
from tests.close import close
from tests.tiny import open_base
from tests.toy import CONFIG, enough


def _eight_pairs() -> list[Pair]:
    ids = torch.randint(1, 90, (8, 3, 4), generator=torch.Generator().manual_seed(5)).tolist()
    return [Pair(tuple(p), tuple(c), tuple(r)) for p, c, r in ids]


def _learn(models: SharedBase, role: str, algorithm: OfflineAlgorithm[Any], batch: Any) -> float:
    seen: list[Mapping[str, float]] = []
    config = replace(CONFIG, steps=25, learning_rate=1e-2, weight_decay=0.0)
    offline.train(
        lambda k, _: [batch],
        algorithm,
        adamw(models, {role: config.learning_rate}, weight_decay=0.0, kind="adamw"),
        config,
        budget=enough(config.micro_batch_tokens),
        log=lambda step, metrics: seen.append(metrics),
        keep=lambda step, state: None,
    )
    assert seen[0]["rewards/accuracy"] < 1.0
    assert seen[-1]["loss"] < seen[0]["loss"] / 2
    return seen[-1]["rewards/accuracy"]


@pytest.mark.parametrize("quantization", [("none", "float32"), ("nf4", "bfloat16")], ids=["float32", "nf4"])
def test_dpo_learns_eight_pairs(tiny: Path, quantization: tuple[str, str]):
    models, batch = open_base(tiny, *quantization), collate_pairs(_eight_pairs())
    models.add("reference")
    models.add("policy", trained=True)
    mask = batch.response_mask[:, 1:]
    ref = by_rows(lambda b: masked_sum(models.logprobs("reference", b)[0], b.response_mask[:, 1:]), batch, enough(64))
    close(ref, masked_sum(models.logprobs("policy", batch)[0], mask), 0.05)
    before, config = models.fingerprint("reference"), dpo.DPOConfig(0.3, "sigmoid", 0.0, 0.0, 0.0)
    assert _learn(models, "policy", dpo.build(models, config), dpo.PairBatch(batch, ref)) == 1.0
    assert models.fingerprint("reference") == before


def test_sppo_raises_the_chosen_and_lowers_the_rejected(tiny: Path):
    """Win rates 0.9 and 0.1. Plain DPO may lower both, as long as their distance grows."""
    models, batch = open_base(tiny), collate_pairs(_eight_pairs())
    models.add("policy", trained=True)
    mask = batch.response_mask[:, 1:]
    ref = masked_sum(models.logprobs("policy", batch)[0], mask).detach()
    config = dpo.DPOConfig(0.3, "sppo", 0.0, 0.0, 0.0)
    given = dpo.PairBatch(batch, ref, torch.tensor([0.9] * 8 + [0.1] * 8))
    assert _learn(models, "policy", dpo.build(models, config), given) == 1.0
    ratios = masked_sum(models.logprobs("policy", batch)[0], mask) - ref
    assert (ratios[:8] > 0).all()
    assert (ratios[8:] < 0).all()


def test_the_reward_model_learns_eight_pairs(tiny: Path):
    models, sequences = open_base(tiny), collate_pairs(_eight_pairs())
    models.add("reward_model", trained=True)
    models.add_head("reward_model", seed=1)
    config = reward_model.RewardModelConfig(0.01, 1.0)
    batch = reward_model.RewardBatch(sequences, torch.zeros(8))
    assert _learn(models, "reward_model", reward_model.build(models, config), batch) == 1.0
