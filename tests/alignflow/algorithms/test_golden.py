"""Compares our maths with numbers that other packages computed; see tests/golden/README.md."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.advantages import gae, group_relative
from alignflow.algorithms.grpo import grpo_loss
from alignflow.algorithms.ppo import adapted_kl_coef, policy_loss, value_loss
from alignflow.ops import KL_ESTIMATORS, masked_mean, masked_sum, token_logprobs, whiten
from tests.close import FLOAT32, FLOAT64, close

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "numbers.json").read_text())
VERL = 1e-7  # it adds 1e-8 to the number of tokens before it divides


def cases(name: str) -> Any:
    found = GOLDEN[name]
    return pytest.mark.parametrize(
        "case", found, ids=[f"{c['source']} {c['function']}".replace(" ", "-") for c in found]
    )


def tensors(case: dict[str, Any], *names: str) -> list[Tensor]:
    """Return inputs as float64, masks and ids unchanged."""
    found = [torch.tensor(case[name]) for name in names]
    return [
        torch.tensor(case[n], dtype=torch.float64) if t.is_floating_point() else t
        for n, t in zip(names, found, strict=True)
    ]


def within(case: dict[str, Any]) -> float:
    """Return the accuracy of a source: stable-baselines3 computes in float32."""
    return {"stable-baselines3": FLOAT32, "verl": VERL}.get(case["source"].split()[0], FLOAT64)


@cases("gae")
def test_generalised_advantages_are_those_of_others(case: dict[str, Any]):
    """Padding on the right; with verl tokens that do not count may lie between those that do."""
    rewards, values, mask = tensors(case, "rewards", "values", "mask")
    advantages, returns = gae(rewards, values, mask, gamma=case["gamma"], gae_lambda=case["gae_lambda"])
    expected = case["expected"]
    close(returns, expected["returns"], within(case))
    if "advantages" in expected:
        close(advantages, expected["advantages"], within(case))
    else:
        close(whiten(advantages, mask), expected["whitened"], within(case))


@cases("whiten")
def test_whitening_is_that_of_others(case: dict[str, Any]):
    values, mask = tensors(case, "values", "mask")
    close(whiten(values, mask, keep_mean=case["keep_mean"]), case["expected"]["whitened"], within(case))


@cases("clipped_ppo")
def test_ppo_losses_and_entropy_are_those_of_torchrl_token_by_token(case: dict[str, Any]):
    """Its clip range may have two sides, as ours in GRPO; its value loss has no ½."""
    logits, actions, old, advantages = tensors(case, "logits", "actions", "old_logprobs", "advantages")
    logprobs, entropy = token_logprobs(logits, torch.eye(logits.shape[1]).double(), actions, chunk=7, entropy=True)
    expected, low, high = case["expected"], case["clip_range_low"], case["clip_range_high"]
    close(entropy, expected["entropy"])
    ranges = {"clip_range_low": low, "clip_range_high": high}
    column = logprobs[:, None], old[:, None]
    close(grpo_loss(*column, column[0], advantages, beta=0.0, **ranges)[:, 0], expected["policy"])
    if low == high:
        close(policy_loss(logprobs, old, advantages, clip_range=low), expected["policy"])
    values = tensors(case, "values", "old_values", "returns")
    close(2 * value_loss(*values, value_clip_range=case["value_clip_range"]), expected["squares"])


def test_the_cases_of_torchrl_clip_on_both_sides():
    for case in GOLDEN["clipped_ppo"]:
        logits, actions, old, advantages = tensors(case, "logits", "actions", "old_logprobs", "advantages")
        ratio = torch.exp(torch.log_softmax(logits, -1).gather(1, actions[:, None])[:, 0] - old)
        assert ((ratio > 1 + case["clip_range_high"]) & (advantages > 0)).any()
        assert ((ratio < 1 - case["clip_range_low"]) & (advantages < 0)).any()


@cases("policy_losses")
def test_grpos_normalisations_are_those_of_verl(case: dict[str, Any]):
    new, old, advantages, mask = tensors(case, "logprobs", "old_logprobs", "advantages", "mask")
    ranges = {name: case[name] for name in ("clip_range_low", "clip_range_high")}
    losses = grpo_loss(new, old, new, advantages, beta=0.0, **ranges)
    sums, (responses, longest) = masked_sum(losses, mask), mask.shape
    close((sums / mask.sum(1)).mean(), case["expected"]["grpo"], VERL)
    close(masked_mean(losses, mask), case["expected"]["dapo"], VERL)
    close(sums.sum() / (responses * longest), case["expected"]["dr_grpo"], VERL)


@cases("value_losses")
def test_the_clipped_value_loss_is_that_of_verl(case: dict[str, Any]):
    *values, mask = tensors(case, "values", "old_values", "returns", "mask")
    losses = value_loss(*values, value_clip_range=case["value_clip_range"])
    close(masked_mean(losses, mask), case["expected"]["mean"], VERL)


@cases("kl")
@pytest.mark.parametrize("name", ["k1", "k3"])
def test_kl_estimators_are_those_of_verl(case: dict[str, Any], name: str):
    close(KL_ESTIMATORS[name](*tensors(case, "logprobs", "ref_logprobs")), case["expected"][name], FLOAT64)


@cases("entropy")
def test_the_entropy_is_that_of_verl(case: dict[str, Any]):
    (logits,) = tensors(case, "logits")
    one_hot, zeros = torch.eye(logits.shape[1]).double(), torch.zeros(len(logits), dtype=torch.long)
    close(token_logprobs(logits, one_hot, zeros, entropy=True)[1], case["expected"]["entropy"])


@cases("group_advantages")
def test_group_advantages_are_those_of_verl(case: dict[str, Any]):
    (scores,) = tensors(case, "scores")
    mask = torch.ones_like(scores, dtype=torch.bool)
    found, _ = group_relative(scores, mask, epsilon=case["epsilon"], scale=case["scale"])
    close(found, case["expected"]["advantages"], FLOAT64)


@cases("kl_controller")
def test_the_kl_controller_is_that_of_verl(case: dict[str, Any]):
    coefficient, path = case["start"], []
    for kl in case["kl"]:
        coefficient = adapted_kl_coef(coefficient, kl, target=case["target"], gain=case["gain"])
        path.append(coefficient)
    close(path, case["expected"]["path"], FLOAT64)
