"""Bradley-Terry reward model: a scalar on the last response token of each of a pair.

L = −log σ(r(x, y_w) − r(x, y_l) − m) + c·(r(x, y_w) + r(x, y_l))²

The first term is Eq. 1 of Ouyang et al. 2022 (arXiv:2203.02155) for one pair, with the margin of Eq. 2 of Touvron et
al. 2023 (arXiv:2307.09288) for data that says by how much a response is better; the second keeps scores centred
(Eisenstein et al. 2023, arXiv:2312.09244). Scores and loss are float32.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from alignflow.types import Models, OfflineAlgorithm, Pair, Sequences, StepOutput


@dataclass(frozen=True)
class RewardModelConfig:
    """Keys of the loss."""

    center_coef: float
    margin_coef: float


@dataclass(frozen=True)
class RewardBatch:
    """All chosen rows, then all rejected rows, with the margins of the data."""

    sequences: Sequences
    margins: Tensor
    """As the data states them, 0 where it does not. (B,)"""


@dataclass(frozen=True)
class StatesBatch:
    """The input of the head for each pair: the hidden states on the last response tokens, computed before."""

    chosen: Tensor
    """(B, H)"""
    rejected: Tensor
    """(B, H)"""
    margins: Tensor
    """As the data states them, 0 where it does not. (B,)"""


def reward_loss(chosen_scores: Tensor, rejected_scores: Tensor, margins: Tensor, *, center_coef: float) -> Tensor:
    """Return −log σ(r_w − r_l − m) + c·(r_w + r_l)² for each pair, not reduced.

    Args:
        chosen_scores: score of the preferred response. (B,)
        rejected_scores: score of the other. (B,)
        margins: m, by how much the scores should differ at least. (B,)
        center_coef: c.

    Returns:
        Loss of each pair, nats for c = 0. (B,)
    """
    preference = -F.logsigmoid(chosen_scores - rejected_scores - margins)
    return preference + center_coef * (chosen_scores + rejected_scores).square()


def cut_rejected(pairs: Sequence[Pair], *, limit: int | None, fraction: float, seed: int) -> list[Pair]:
    """Return the pairs with a share of the rejected responses cut off, end included.

    Samples that reach the limit have no end-of-sequence; a scorer that never saw such a response scores it at random.
    A dispreferred response stays dispreferred when cut, so every label stays true.

    Args:
        pairs: stored pairs.
        limit: tokens that are left of a longer response; shorter ones stay whole. None: a cut leaves 1 token to all but
            one, each number equally likely.
        fraction: probability that a response is cut.
        seed: of the choice.
    """
    chance = random.Random(seed)
    draws = [chance.random() < fraction for _ in pairs]
    return [
        pair._replace(rejected=pair.rejected[: limit or chance.randint(1, len(pair.rejected) - 1)])
        if cut and len(pair.rejected) > (limit or 1)
        else pair
        for pair, cut in zip(pairs, draws, strict=True)
    ]


def count(batch: RewardBatch | StatesBatch) -> float:
    """Return the pairs of a micro-batch: the share of the denominator it brings."""
    return float(len(batch.margins))


def step(models: Models, batch: RewardBatch, config: RewardModelConfig) -> StepOutput:
    """Return the loss of each pair. (B,)"""
    chosen, rejected = models.scores("reward_model", batch.sequences).chunk(2)
    return _output(chosen, rejected, batch.margins, config)


def head_step(head: Callable[[Tensor], Tensor], batch: StatesBatch, config: RewardModelConfig) -> StepOutput:
    """Return the loss of each pair with the states as they are, so that the head alone is trained. (B,)"""
    return _output(head(batch.chosen)[:, 0], head(batch.rejected)[:, 0], batch.margins, config)


def build(models: Models, config: RewardModelConfig) -> OfflineAlgorithm[RewardBatch]:
    """Bind the algorithm to models with the role ``reward_model`` and to its settings."""
    return OfflineAlgorithm(
        step=lambda batch: step(models, batch, config), count=count, tokens=lambda batch: batch.sequences.tokens()
    )


def build_head(head: Callable[[Tensor], Tensor], config: RewardModelConfig) -> OfflineAlgorithm[StatesBatch]:
    """Bind the training of a head alone; a pair counts as one token."""
    return OfflineAlgorithm(
        step=lambda batch: head_step(head, batch, config), count=count, tokens=lambda batch: len(batch.margins)
    )


def _output(chosen: Tensor, rejected: Tensor, margins: Tensor, config: RewardModelConfig) -> StepOutput:
    losses = reward_loss(chosen, rejected, config.margin_coef * margins, center_coef=config.center_coef)
    return StepOutput(
        losses=losses,
        mask=torch.ones_like(losses, dtype=torch.bool),
        metrics={
            "rewards/accuracy": (chosen > rejected).float(),
            "rewards/margin": (chosen - rejected).detach(),
            "score/mean": torch.cat([chosen, rejected]).detach(),
        },
    )
