"""Scalar heads on the last hidden state: the reward model's score and the critic's value."""

import torch
from torch import Tensor, nn


def scalar_head(hidden_size: int, *, seed: int, device: torch.device, bias: float | None = None) -> nn.Linear:
    """Return a float32 linear map to one number, initialised with std 1/√(H+1).

    As in the summarisation models that Huang et al. 2024, arXiv:2403.17031, reproduce. A reward model's head has no
    bias, because a constant does not change the order of two responses. A critic's head has one, to predict the mean.
    """
    head = nn.Linear(hidden_size, 1, bias=bias is not None, dtype=torch.float32)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        head.weight.normal_(0.0, (hidden_size + 1) ** -0.5, generator=generator)
        if bias is not None:
            head.bias.fill_(bias)
    return head.to(device)


def last_response_index(response_mask: Tensor) -> Tensor:
    """Return the column of each row's last response token, from the mask and not from token ids. (B, S) -> (B,)

    Raises:
        ValueError: a row has no response token.
    """
    if not bool(response_mask.any(1).all()):
        raise ValueError("a row without response tokens has no score")
    columns = torch.arange(response_mask.shape[1], device=response_mask.device)
    return torch.where(response_mask, columns, -1).max(1).values
