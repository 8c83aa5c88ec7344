"""Writes numbers.json: random inputs, and outputs of other packages. README.md explains how to run it."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate, vec_generalized_advantage_estimate
from trl.core import masked_whiten as trl_whiten
from verl.trainer.ppo import core_algos as verl
from verl.utils.torch_functional import entropy_from_logits
from verl.utils.torch_functional import masked_whiten as verl_whiten

torch.set_default_dtype(torch.float64)  # torchrl multiplies the discount by whole numbers in the default one
DRAW = np.random.default_rng(7)
LENGTHS = [[1], [5, 3], [12, 1, 7, 9]]  # response tokens of each row of three batches
SETTINGS = [(1.0, 0.95), (0.9, 0.5), (0.97, 0.9)]  # gamma, lambda


def draw(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.tensor(np.round(DRAW.normal(0.0, scale, shape), 3))


def right_padded(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def with_holes(lengths: list[int]) -> Tensor:
    """Return masks of tokens that count with others between them, at least two in all."""
    mask = right_padded(lengths) & torch.tensor(DRAW.random((len(lengths), max(lengths))) < 0.7)
    mask[0, 0] = mask[0, -1] = True
    return mask


def case(source: str, function: str, inputs: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    return (
        {"source": f"{source} {version(source)}", "function": function} | plain(inputs) | {"expected": plain(outputs)}
    )


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: rounded(v.tolist() if isinstance(v, Tensor) else v) for name, v in values.items()}


def rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


# -- generalised advantages ----------------------------------------------------------------------------------------


def sb3_gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> dict[str, Tensor]:
    """Run its rollout buffer, one environment a row; where padding begins, another episode begins."""
    rows, steps = rewards.shape
    box = spaces.Box(0.0, 1.0, (1,))
    buffer = RolloutBuffer(steps, box, box, device="cpu", gae_lambda=lam, gamma=gamma, n_envs=rows)
    start = ~mask.numpy()
    for t in range(steps):
        zeros = np.zeros((rows, 1))
        buffer.add(zeros, zeros, rewards[:, t].numpy(), start[:, t], values[:, t], torch.zeros(rows))
    buffer.compute_returns_and_advantage(torch.zeros(rows), np.ones(rows, dtype=bool))
    found = (buffer.advantages, buffer.returns)  # (steps, rows), float32
    return dict(zip(("advantages", "returns"), (torch.tensor(x.T).where(mask, 0.0) for x in found), strict=True))


def torchrl_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, vec: bool
) -> dict[str, Tensor]:
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
    done = ~torch.cat([mask[:, 1:], torch.zeros(len(mask), 1, dtype=torch.bool)], 1)
    estimate = vec_generalized_advantage_estimate if vec else generalized_advantage_estimate
    advantages, returns = estimate(gamma, lam, *(x[..., None] for x in (values, following, rewards, done)))
    return {"advantages": advantages[..., 0].where(mask, 0.0), "returns": returns[..., 0].where(mask, 0.0)}


def verl_gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> dict[str, Tensor]:
    """Return its returns, and its advantages, which it whitens."""
    whitened, returns = verl.compute_gae_advantage_return(rewards, values, mask.double(), gamma, lam)
    return {"whitened": whitened.where(mask, 0.0), "returns": returns.where(mask, 0.0)}


def gae() -> list[dict[str, Any]]:
    cases = []
    for lengths, (gamma, lam) in zip(LENGTHS, SETTINGS, strict=True):
        mask = right_padded(lengths)
        rewards, values = draw(*mask.shape), draw(*mask.shape)
        inputs = {"rewards": rewards, "values": values, "mask": mask, "gamma": gamma, "gae_lambda": lam}
        args = (rewards, values, mask, gamma, lam)
        name = "RolloutBuffer.compute_returns_and_advantage"
        cases.append(case("stable-baselines3", name, inputs, sb3_gae(*args)))
        cases.append(case("torchrl", "generalized_advantage_estimate", inputs, torchrl_gae(*args, vec=False)))
        cases.append(case("torchrl", "vec_generalized_advantage_estimate", inputs, torchrl_gae(*args, vec=True)))
        if mask.sum() > 1:
            mask = with_holes(lengths)
            outputs = verl_gae(rewards, values, mask, gamma, lam)
            cases.append(case("verl", "compute_gae_advantage_return", inputs | {"mask": mask}, outputs))
    return cases


def whiten() -> list[dict[str, Any]]:
    cases = []
    for lengths in LENGTHS[1:]:
        for mask in (right_padded(lengths), with_holes(lengths)):
            values = draw(*mask.shape, scale=3.0) + 2.0
            for keep_mean in (False, True):
                inputs = {"values": values, "mask": mask, "keep_mean": keep_mean}
                for source, function in (("trl", trl_whiten), ("verl", verl_whiten)):
                    found = function(values, mask.double(), shift_mean=not keep_mean).where(mask, 0.0)
                    cases.append(case(source, "masked_whiten", inputs, {"whitened": found}))
    return cases


# -- losses --------------------------------------------------------------------------------------------------------


def clipped_ppo() -> list[dict[str, Any]]:
    """Run torchrl's loss module on a policy and critic that repeat what they are given; nothing is reduced."""
    actor = ProbabilisticActor(
        TensorDictModule(torch.nn.Identity(), in_keys=["given"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    critic = TensorDictModule(torch.nn.Identity(), in_keys=["new_value"], out_keys=["state_value"])
    cases = []
    for size, low, high, span in ((20, 0.2, 0.2, 0.3), (20, 0.1, 0.3, 0.1)):
        loss = ClipPPOLoss(
            actor,
            critic,
            clip_epsilon=(low, high),
            entropy_coeff=1.0,
            critic_coeff=1.0,
            loss_critic_type="l2",
            clip_value=span,
            reduction="none",
        )
        logits, actions = draw(size, 6), torch.tensor(DRAW.integers(0, 6, size))
        old = torch.log_softmax(logits + draw(size, 6, scale=0.5), -1)[torch.arange(size), actions]
        old = torch.tensor(np.round(old.numpy(), 3))
        advantages, values, old_values, returns = (draw(size) for _ in range(4))
        data = {
            "given": logits,
            "action": actions,
            "action_log_prob": old,
            "advantage": advantages[:, None],
            "new_value": values[:, None],
            "state_value": old_values[:, None],
            "value_target": returns[:, None],
        }
        found = loss(TensorDict(data, [size]))
        inputs = {"logits": logits, "actions": actions, "old_logprobs": old, "advantages": advantages}
        inputs |= {"values": values, "old_values": old_values, "returns": returns}
        inputs |= {"clip_range_low": low, "clip_range_high": high, "value_clip_range": span}
        outputs = {
            "policy": found["loss_objective"].flatten(),
            "entropy": -found["loss_entropy"].flatten(),
            "squares": found["loss_critic"].flatten(),
        }
        cases.append(case("torchrl", "ClipPPOLoss", inputs, outputs))
    return cases


MODES = {"grpo": "seq-mean-token-mean", "dapo": "token-mean", "dr_grpo": "seq-mean-token-sum-norm"}


def policy_losses() -> list[dict[str, Any]]:
    """Return verl's clipped losses under its names of our normalisations, without its dual clip."""
    cases = []
    for lengths in LENGTHS[1:]:
        mask = right_padded(lengths)
        new, old = (draw(*mask.shape, scale=0.3) - 2.0 for _ in range(2))
        advantages = draw(len(lengths))
        keys = {"cliprange_low": 0.2, "cliprange_high": 0.28, "clip_ratio_c": 1e6}
        expected = {}
        for name, mode in MODES.items():  # verl's longest allowed length is the width of the batch
            whole = advantages[:, None].expand_as(new)
            expected[name] = verl.compute_policy_loss(old, new, whole, mask.double(), loss_agg_mode=mode, **keys)[0]
        inputs = {"logprobs": new, "old_logprobs": old, "advantages": advantages, "mask": mask}
        inputs |= {"clip_range_low": 0.2, "clip_range_high": 0.28}
        cases.append(case("verl", "compute_policy_loss", inputs, expected))
    return cases


def value_losses() -> list[dict[str, Any]]:
    cases = []
    for lengths in LENGTHS[1:]:
        mask = with_holes(lengths)
        values, old, returns = (draw(*mask.shape) for _ in range(3))
        found, _ = verl.compute_value_loss(values, returns, old, mask.double(), 0.2)
        inputs = {"values": values, "old_values": old, "returns": returns, "mask": mask, "value_clip_range": 0.2}
        cases.append(case("verl", "compute_value_loss", inputs, {"mean": found}))
    return cases


# -- the rest ------------------------------------------------------------------------------------------------------


def kl() -> list[dict[str, Any]]:
    """Stay where verl's own clamp of k3, to ±10, does nothing."""
    new, ref = draw(12), draw(12)
    expected = {name: verl.kl_penalty(new, ref, name) for name in ("k1", "k3")}
    return [case("verl", "kl_penalty", {"logprobs": new, "ref_logprobs": ref}, expected)]


def entropy() -> list[dict[str, Any]]:
    logits = draw(5, 9, scale=2.0)
    return [case("verl", "entropy_from_logits", {"logits": logits}, {"entropy": entropy_from_logits(logits)})]


def group_advantages() -> list[dict[str, Any]]:
    cases = []
    for scale in (True, False):
        scores = draw(3, 4)
        index = np.repeat(np.arange(3), 4)
        one_token = torch.ones(12, 1)
        found, _ = verl.compute_grpo_outcome_advantage(
            scores.reshape(12, 1), one_token, index, epsilon=0.01, norm_adv_by_std_in_grpo=scale
        )
        inputs = {"scores": scores, "epsilon": 0.01, "scale": scale}
        cases.append(case("verl", "compute_grpo_outcome_advantage", inputs, {"advantages": found.reshape(3, 4)}))
    return cases


def kl_controller() -> list[dict[str, Any]]:
    """Move the coefficient with KLs inside and beyond the clip; its gain is steps / horizon."""
    controller, path, kls = verl.AdaptiveKLController(0.2, target_kl=6.0, horizon=10_000), [], [3.0, 6.5, 20.0, 5.5]
    for value in kls:
        controller.update(value, 1_000)
        path.append(controller.value)
    return [case("verl", "AdaptiveKLController", {"start": 0.2, "target": 6.0, "gain": 0.1, "kl": kls}, {"path": path})]


if __name__ == "__main__":
    makers = (gae, whiten, clipped_ppo, policy_losses, value_losses, kl, entropy, group_advantages, kl_controller)
    lines = [f'"{make.__name__}": [\n' + ",\n".join(map(json.dumps, make())) + "\n]" for make in makers]
    Path(__file__).with_name("numbers.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
