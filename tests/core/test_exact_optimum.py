"""One token, three actions: everything is enumerated, so the optimum is known in closed form.

pi_ref = (.5, .3, .2), r = (1, 0, .5), beta = .5. DPO and PPO reach pi_ref exp(r / beta) / Z. GRPO does not: with
k3 inside the loss and G = 2 its fixed point is b pi_ref / (b + mean r - r), b = beta G / (G - 1).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from alignflow.advantages import group_relative
from alignflow.algorithms.dpo import dpo_loss
from alignflow.algorithms.grpo import grpo_loss
from alignflow.algorithms.ppo import policy_loss, token_rewards
from tests.close import close

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
BETA = 0.5
ACTIONS = range(3)


def solve(objective: Callable[[Tensor], Tensor], steps: int, rate: float) -> Tensor:
    logits = REF.log().clone().requires_grad_()
    for _ in range(steps):
        (grad,) = torch.autograd.grad(objective(logits.log_softmax(0)), logits)
        with torch.no_grad():
            logits -= rate * grad
    return logits.softmax(0)


def boltzmann() -> list[float]:
    """.5 e^2, .3, .2 e over their sum: (.814, .066, .120)."""
    weights = [p * math.exp(r / 0.5) for p, r in zip((0.5, 0.3, 0.2), (1.0, 0.0, 0.5), strict=True)]
    return [w / sum(weights) for w in weights]


def test_dpo_on_bradley_terry_preferences_reaches_the_boltzmann_policy():
    first = torch.tensor([i for i in ACTIONS for j in ACTIONS if i != j])
    second = torch.tensor([j for i in ACTIONS for j in ACTIONS if i != j])
    preferred = torch.tensor(
        [1 / (1 + math.exp(REWARD[j] - REWARD[i])) for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    )

    def objective(logprobs: Tensor) -> Tensor:
        losses = dpo_loss(
            logprobs[first],
            logprobs[second],
            REF.log()[first],
            REF.log()[second],
            beta=BETA,
            loss="sigmoid",
            label_smoothing=0.0,
        )
        return (preferred * losses).sum()

    found = solve(objective, 600, 4.0)
    close(found, boltzmann(), 1e-6)
    close(found, [0.814, 0.066, 0.120], 1e-3)


def test_ppo_with_the_penalty_in_the_reward_reaches_the_boltzmann_policy():
    mask = torch.ones(3, 1, dtype=torch.bool)

    def objective(logprobs: Tensor) -> Tensor:
        old = logprobs.detach()
        rewards = token_rewards(REWARD, old[:, None], REF.log()[:, None], mask, kl_coef=BETA)
        advantages = rewards - (old.exp()[:, None] * rewards).sum()
        return (old.exp()[:, None] * policy_loss(logprobs[:, None], old[:, None], advantages, clip_range=0.2)).sum()

    close(solve(objective, 1500, 1.0), boltzmann(), 1e-6)


def test_grpo_with_k3_in_the_loss_has_its_own_fixed_point():
    """G = 2, no division by the deviation. All nine groups are enumerated with their probability.

    E[A | action a] = (G - 1) / G (r_a - mean r), and the gradient of E[k3] with sampling weights held is
    sum_a (pi - pi_ref)(a) d log pi(a); so (1/2)(r_a - mean r) pi_a = beta (pi_a - pi_ref_a), solved for pi.
    """
    groups = torch.tensor([[i, j] for i in ACTIONS for j in ACTIONS])

    def objective(logprobs: Tensor) -> Tensor:
        old = logprobs.detach()
        advantages = group_relative(REWARD[groups], epsilon=0.01, scale=False)
        chosen = logprobs[groups].reshape(-1, 1)
        losses = grpo_loss(
            chosen,
            chosen.detach(),
            REF.log()[groups].reshape(-1, 1),
            advantages.flatten(),
            beta=BETA,
            clip_range_low=0.2,
            clip_range_high=0.2,
        ).view(9, 2)
        return (old.exp()[groups].prod(1) * losses.mean(1)).sum()

    found = solve(objective, 3000, 1.0).detach()
    close(found, [0.668, 0.172, 0.160], 1e-3)
    mean, slope = float((found * REWARD).sum()), BETA * 2
    close(found, slope * REF / (slope + mean - REWARD), 1e-6)
    assert abs(float(found[0]) - boltzmann()[0]) > 0.1
