"""What a model that knows only "cut off or not" and length predicts of a judge: the cheapest explanation of a win."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignflow.evaluation.length_control import root_mean_square, scaled
from alignflow.evaluation.logistic import fit, sigmoid
from alignflow.evaluation.win_rates import Floats


@dataclass(frozen=True)
class JudgedPairs:
    """Pairs of answers of a policy and the reference: how a judge decided, and what shows without reading them."""

    outcomes: Floats
    """1 for a win, ½ for a tie, 0 for a loss; NaN where the judge did not see the pair. (P, n)"""
    cut: Floats
    """1 where only the policy's answer is cut off, −1 where only the reference's is, else 0. (P, n)"""
    extra: Floats
    """Length of the policy's answer minus the reference's, tokens. (P, n)"""
    complete: NDArray[np.bool_]
    """True where neither answer is cut off. (P, n)"""


@dataclass(frozen=True)
class CutOrLength:
    """The fitted model of one judge."""

    cut: float
    """Log-odds of a win when the policy's answer alone is cut off."""
    length: float
    """Log-odds of a win for tanh(d / scale) = 1."""
    scale: float
    """Root mean square of the differences in length, tokens."""

    def rate(self, pairs: JudgedPairs) -> float:
        """Return the win rate that the model predicts: as in the real one, each prompt counts once."""
        counted = np.isfinite(pairs.outcomes)
        odds = self.cut * pairs.cut + self.length * scaled(pairs.extra, self.scale)
        prompts = counted.any(1)
        of_prompts = np.where(counted, sigmoid(odds), 0)[prompts].sum(1) / counted[prompts].sum(1)
        return float(of_prompts.mean())


def cut_or_length(policies: Mapping[str, JudgedPairs], ridge: float) -> CutOrLength:
    """Fit one judge's outcomes over the pairs of all policies against the reference.

    P(win) = σ(a · c + b · tanh(d / s)),  c and d: cut-off and length of the policy minus the reference
    (â, b̂): `logistic.fit`; a prompt of a policy counts once, so each of its n pairs has weight 1/n

    Bradley and Terry 1952: an answer's strength is a · [cut off] + b · (length), so there is no intercept, two answers
    that look alike are even, and swapping the sides mirrors the prediction. What goes along with cut-off and
    length, such as better content, is counted for them: the prediction is what they could explain, not what they cause.

    Args:
        policies: Pairs by policy.
        ridge: λ > 0 on both coefficients; keeps them finite where one of them explains everything.

    Raises:
        ValueError: There is no pair.
    """
    kept = [(each, np.isfinite(each.outcomes)) for each in policies.values()]
    kept = [(each, counted) for each, counted in kept if counted.any()]
    if not kept:
        raise ValueError("there is no pair to fit on")
    prompts = [counted.any(1) for _, counted in kept]
    squares = [
        (rows.sum(), root_mean_square(each.extra[rows], counted[rows]) ** 2)
        for (each, counted), rows in zip(kept, prompts, strict=True)
    ]
    scale = float(np.sqrt(sum(n * square for n, square in squares) / sum(n for n, _ in squares)))
    weights = [(counted / np.maximum(counted.sum(1, keepdims=True), 1))[counted] for _, counted in kept]
    outcomes = np.concatenate([each.outcomes[counted] for each, counted in kept])
    cut = np.concatenate([each.cut[counted] for each, counted in kept])
    extra = np.concatenate([each.extra[counted] for each, counted in kept])
    design = np.stack((cut, scaled(extra, scale)), axis=1)
    a, b = fit(np.concatenate(weights)[None], outcomes, design, ridge)[0]
    return CutOrLength(float(a), float(b), scale)
