"""Advantages: generalised advantage estimation with a critic, and group-relative without one."""

import torch
from torch import Tensor

from alignflow.ops import masked_sum


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantages and the returns that the critic regresses on; neither whitened.

    δ_t = r_t + γ V_{t+1} − V_t,  Â_t = δ_t + γλ Â_{t+1},  return_t = Â_t + V_t

    Schulman et al. 2016, arXiv:1506.02438, Eq. 16, over the True entries of the mask in order: tokens that do
    not count are skipped, and the value past the last one is 0.

    Args:
        rewards: reward of each token. (B, T)
        values: critic's value before each token, without gradient. (B, T)
        mask: True at response tokens. (B, T)
        gamma: discount.
        gae_lambda: λ.

    Returns:
        Advantages and returns, zero where the mask is False. (B, T), (B, T)
    """
    advantages = torch.zeros_like(values)
    next_value = values.new_zeros(len(values))
    next_advantage = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * gae_lambda * next_advantage
        next_advantage = torch.where(counts, advantage, next_advantage)
        next_value = torch.where(counts, values[:, t], next_value)
        advantages[:, t] = torch.where(counts, advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def group_relative(scores: Tensor, mask: Tensor, *, epsilon: float, scale: bool) -> tuple[Tensor, Tensor]:
    """Return the advantage of each response over its group, (r − mean) / (std + ε), and the groups' std.

    Shao et al. 2024, arXiv:2402.03300, section 4.1.2, with the unbiased standard deviation. ε bounds what nearly
    equal scores can do: a spread far below ε gives advantages near 0, not ±1.

    Args:
        scores: one row a prompt, one column a sample. (P, G), G ≥ 2
        mask: True where a response has a score; the others have advantage 0. A group with fewer than two has
            deviation 0 and advantages 0. (P, G)
        epsilon: ε, in units of the score.
        scale: divide by the deviation; False only centres (Dr. GRPO, arXiv:2503.20783).

    Returns:
        Advantages and deviations. (P, G), (P,)

    Raises:
        ValueError: a group of one has no deviation.
    """
    if scores.shape[1] < 2:
        raise ValueError("a group needs at least 2 responses")
    count = mask.sum(1, keepdim=True)
    mean = masked_sum(scores, mask)[:, None] / count.clamp(min=1)
    centred = torch.where(mask, scores - mean, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + epsilon) if scale else centred, std[:, 0]
