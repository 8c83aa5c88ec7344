"""One token, three actions: everything is enumerated, so the optimum is known in closed form.

pi_ref = (.5, .3, .2), r = (1, 0, .5), beta = .5. DPO and PPO reach pi_ref exp(r / beta) / Z. GRPO does not: with
k3 inside the loss and G = 2 its fixed point is b pi_ref / (b + mean r - r), b = beta G / (G - 1). Iterative DPO's
limit depends on its reference.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.advantages import group_relative
from alignflow.algorithms.dpo import dpo_loss, sppo_loss
from alignflow.algorithms.grpo import grpo_loss
from alignflow.algorithms.ppo import policy_loss, token_rewards
from tests.close import close

REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
BETA = 0.5
ACTIONS = range(3)


def least(objective: Callable[[Tensor], Tensor], start: Tensor = REF) -> Tensor:
    """Return the policy with the smallest expected loss; the loss is an explicit function of the policy."""
    logits = start.log().clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = objective(logits.log_softmax(0))
        loss.backward()
        return loss

    solver.step(closure)
    return logits.detach().softmax(0)


def follow(objective: Callable[[Tensor], Tensor], steps: int, rate: float) -> Tensor:
    """Return the limit of gradient steps, for objectives whose sampling weights are constant in each step."""
    logits = REF.log().clone().requires_grad_()
    for _ in range(steps):
        (grad,) = torch.autograd.grad(objective(logits.log_softmax(0)), logits)
        with torch.no_grad():
            logits -= rate * grad
    return logits.detach().softmax(0)


def boltzmann() -> list[float]:
    """.5 e^2, .3, .2 e over their sum: (.814, .066, .120)."""
    weights = [p * math.exp(r / 0.5) for p, r in zip((0.5, 0.3, 0.2), (1.0, 0.0, 0.5), strict=True)]
    return [w / sum(weights) for w in weights]


FIRST = torch.tensor([i for i in ACTIONS for j in ACTIONS if i != j])
SECOND = torch.tensor([j for i in ACTIONS for j in ACTIONS if i != j])
PREFERRED = torch.sigmoid(REWARD[FIRST] - REWARD[SECOND])  # Bradley-Terry


def dpo_objective(reference: Tensor, weights: Tensor, loss: str = "sigmoid", smoothing: float = 0.0) -> Any:
    """Return the expected DPO loss as a function of the policy's log-probs. weights: of each ordered pair (6,)"""

    def objective(logprobs: Tensor) -> Tensor:
        losses = dpo_loss(
            logprobs[FIRST],
            logprobs[SECOND],
            reference.log()[FIRST],
            reference.log()[SECOND],
            beta=BETA,
            loss=loss,
            label_smoothing=smoothing,
        )
        return (weights * losses).sum()

    return objective


def test_dpo_on_bradley_terry_preferences_reaches_the_boltzmann_policy():
    found = least(dpo_objective(REF, PREFERRED))
    close(found, boltzmann(), 1e-6)
    close(found, [0.814, 0.066, 0.120], 1e-3)


def test_robust_dpo_on_labels_of_which_a_fifth_is_flipped_still_reaches_it():
    """The noise mixes each preference with its opposite; cDPO has another optimum on the same labels."""
    noisy = 0.8 * PREFERRED + 0.2 * (1 - PREFERRED)
    close(least(dpo_objective(REF, noisy, "robust", 0.2)), boltzmann(), 1e-6)
    assert abs(float(least(dpo_objective(REF, noisy, "sigmoid", 0.2))[0]) - boltzmann()[0]) > 0.1


def test_ipo_matches_each_log_ratio_to_its_preference():
    """Azar et al. 2023: with two actions the minimiser has h = (p - (1 - p)) / (2 beta), p the preference."""
    pair = (FIRST < 2) & (SECOND < 2)
    found = least(dpo_objective(REF, PREFERRED * pair, "ipo"))
    h = float((found.log() - REF.log())[0] - (found.log() - REF.log())[1])
    p = 1 / (1 + math.exp(-1.0))
    close(h, (2 * p - 1) / (2 * BETA), 1e-6)


@pytest.mark.parametrize("anchor", ["previous", "initial"])
def test_iterative_dpo_sharpens_round_by_round_or_stays_with_its_first_reference(anchor: str):
    """Pairs are sampled from the current policy and labelled by Bradley-Terry; sampling does not move the optimum.

    A round's optimum is reference * exp(r / beta) / Z. With the previous round as reference m rounds multiply it m
    times, pi_m = pi_0 exp(m r / beta) / Z, and the limit is the best action alone; with the initial one all rounds
    end at the same policy.
    """
    policy = REF
    for turn in (1, 2, 3):
        sampled = policy[FIRST] * policy[SECOND]
        weights = PREFERRED * sampled / sampled.sum() * 6
        reference = policy if anchor == "previous" else REF
        policy = least(dpo_objective(reference, weights), start=reference)
        powers = turn if anchor == "previous" else 1
        expected = REF * torch.exp(powers * REWARD / BETA)
        close(policy, expected / expected.sum(), 1e-6)


def siblings(reference: list[float], values: list[float]) -> list[float]:
    """Return where DPO on two sibling steps ends, if labels are Bradley-Terry in the steps' values."""
    ref, value = (torch.tensor(x, dtype=torch.float64) for x in (reference, values))

    def objective(logprobs: Tensor) -> Tensor:
        ratios = logprobs.log_softmax(0) - ref.log()
        zero = torch.zeros(2, dtype=torch.float64)
        losses = dpo_loss(ratios, ratios.flip(0), zero, zero, beta=BETA, loss="sigmoid", label_smoothing=0.0)
        return (torch.sigmoid(value - value.flip(0)) * losses).sum()

    return least(objective, start=ref).tolist()


@pytest.mark.parametrize(
    ("labels", "ends"),
    [("soft", [0.648786, 0.131705, 0.153656, 0.065853]), ("mean", [0.573543, 0.116431, 0.217018, 0.093008])],
)
def test_step_dpo_ends_at_the_optimum_over_answers_by_soft_values_alone(labels: str, ends: list[float]):
    """Two steps, two actions: pi(a) = .5, pi(a|a) = .4, pi(a|b) = .7, reward 1 for aa.

    The soft value of a step, beta log E exp(r / beta), makes step-wise DPO end at pi_ref exp(r / beta) / Z over whole
    answers. Its mean value is what success rates of continuations measure, and ends elsewhere.
    """
    first, second = [0.5, 0.5], {"a": [0.4, 0.6], "b": [0.7, 0.3]}
    rewards = {"a": [1.0, 0.0], "b": [0.0, 0.0]}
    soft = {
        s: BETA * math.log(sum(p * math.exp(r / BETA) for p, r in zip(second[s], rewards[s], strict=True)))
        for s in "ab"
    }
    mean = {s: sum(p * r for p, r in zip(second[s], rewards[s], strict=True)) for s in "ab"}
    close([soft["a"], mean["a"]], [0.634265, 0.4], 1e-6)
    values = soft if labels == "soft" else mean
    begun = dict(zip("ab", siblings(first, [values["a"], values["b"]]), strict=True))
    found = [begun[s] * p for s in "ab" for p in siblings(second[s], rewards[s])]
    close(found, ends, 1e-6)
    whole = [p * q * math.exp(r / BETA) for s, p in zip("ab", first, strict=True)
             for q, r in zip(second[s], rewards[s], strict=True)]  # fmt: skip
    off = max(abs(f - w / sum(whole)) for f, w in zip(found, whole, strict=True))
    assert (off < 1e-6) == (labels == "soft")


WINS = torch.sigmoid(REWARD[:, None] - REWARD) @ REF  # P(y > pi_ref), Bradley-Terry


def sppo_objective(base: Tensor, wins: Tensor, eta: float) -> Any:
    """Return the expected squared distance to the targets; a pair of one response twice counts it once."""

    def objective(logprobs: Tensor) -> Tensor:
        ratios = logprobs - base.log()
        return (REF * sppo_loss(ratios.repeat(2), wins.repeat(2), beta=1 / eta, label_smoothing=0.0)).sum()

    return objective


@pytest.mark.parametrize(
    ("eta", "shipped", "exact"),
    [
        (1.0, [0.546139, 0.259659, 0.194202], [0.546368, 0.259469, 0.194163]),
        (4.0, [0.664054, 0.164979, 0.170967], [0.673547, 0.158604, 0.167849]),
    ],
)
def test_sppo_ends_near_the_multiplicative_weights_and_at_them_with_the_exact_log_z(
    eta: float, shipped: list[float], exact: list[float]
):
    """Eq. 3.4 has log Z where Eq. 3.6, the loss, has eta / 2. Win rates that carry log Z give the exact minimiser."""
    close(WINS, [0.593809, 0.359979, 0.475508], 1e-6)
    close(least(sppo_objective(REF, WINS, eta)), shipped, 1e-6)
    log_z = (REF * torch.exp(eta * WINS)).sum().log()
    close(least(sppo_objective(REF, WINS - log_z / eta + 0.5, eta)), exact, 1e-6)


@pytest.mark.parametrize(("rounds", "found"), [(400, 0.0412), (6400, 0.0100)])
def test_sppo_against_itself_finds_the_mix_of_rock_paper_and_scissors_on_average(rounds: int, found: float):
    """Log-ratios at their targets, renormalised, are a step of multiplicative weights with eta = 1 / sqrt(rounds).

    Hedge's bound on what the best answer to the average policy wins beyond 1/2 is (ln(1 / min pi_1) + 1/8) /
    sqrt(rounds), since self-play earns 1/2 in every round. The last policy is no equilibrium.
    """
    beats = torch.tensor([[0.5, 1, 0], [0, 0.5, 1], [1, 0, 0.5]], dtype=torch.float64)
    policy = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    mean, at = torch.zeros(3, dtype=torch.float64), torch.zeros(6, dtype=torch.float64, requires_grad=True)
    for _ in range(rounds):
        mean = mean + policy / rounds
        loss = sppo_loss(at, (beats @ policy).repeat(2), beta=math.sqrt(rounds), label_smoothing=0.0).sum()
        (slope,) = torch.autograd.grad(loss, at)  # the loss is a half square: one step of size 1 ends at the target
        policy = (policy * torch.exp(-slope[:3])) / (policy * torch.exp(-slope[:3])).sum()
    gap = float((beats @ mean).max()) - 0.5
    close(gap, found, 1e-4)
    assert gap <= (math.log(1 / 0.1) + 1 / 8) / math.sqrt(rounds)
    assert float((beats @ policy).max()) - 0.5 > 5 * gap


def test_ppo_with_the_penalty_in_the_reward_reaches_the_boltzmann_policy():
    mask = torch.ones(3, 1, dtype=torch.bool)

    def objective(logprobs: Tensor) -> Tensor:
        old = logprobs.detach()
        rewards = token_rewards(REWARD, old[:, None], REF.log()[:, None], mask, kl_coef=BETA, kl_estimator="k1")
        advantages = rewards - (old.exp()[:, None] * rewards).sum()
        return (old.exp()[:, None] * policy_loss(logprobs[:, None], old[:, None], advantages, clip_range=0.2)).sum()

    close(follow(objective, 1500, 1.0), boltzmann(), 1e-6)


def test_grpo_with_k3_in_the_loss_has_its_own_fixed_point():
    """G = 2, no division by the deviation. All nine groups are enumerated with their probability.

    E[A | action a] = (G - 1) / G (r_a - mean r), and the gradient of E[k3] with sampling weights held is
    sum_a (pi - pi_ref)(a) d log pi(a); so (1/2)(r_a - mean r) pi_a = beta (pi_a - pi_ref_a), solved for pi.
    """
    groups = torch.tensor([[i, j] for i in ACTIONS for j in ACTIONS])

    def objective(logprobs: Tensor) -> Tensor:
        old = logprobs.detach()
        everyone = torch.ones_like(groups, dtype=torch.bool)
        advantages, _ = group_relative(REWARD[groups], everyone, epsilon=0.01, scale=False)
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

    found = follow(objective, 3000, 1.0)
    close(found, [0.668, 0.172, 0.160], 1e-3)
    mean, slope = float((found * REWARD).sum()), BETA * 2
    close(found, slope * REF / (slope + mean - REWARD), 1e-6)
    assert abs(float(found[0]) - boltzmann()[0]) > 0.1
