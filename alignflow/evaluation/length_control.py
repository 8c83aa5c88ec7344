"""Length-controlled win rate: an estimate of the win rate between answers of equal length.

Dubois et al. 2024, *Length-Controlled AlpacaEval* (arXiv:2404.04475), section 3: a logistic regression of the
outcome on the difference of lengths, evaluated at difference 0. Departures: it compares one pair of models, so
there is no term for the difficulty of a prompt; a ridge penalty keeps both coefficients finite when prompts are few or
separable; the difference is divided by its root mean square, not by its standard deviation, so that 0 stays 0.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from alignflow.evaluation.logistic import fit, sigmoid, standard_errors
from alignflow.evaluation.win_rates import Floats, Interval, Rate, Resampling

AT_ONCE = 2_000_000
"""Number of resamples times pairs in one fit; bounds memory."""


def length_controlled(each: Floats, extra: Floats, ridge: float, resampling: Resampling) -> Rate:
    """Return the win rate at equal length, with a bootstrap interval that is widened where the data is not informative.

    P(win) = σ(θ + φ · tanh(dᵢⱼ / s)),  s² = weighted mean of d²;  the rate is σ(θ̂)
    (θ̂, φ̂): `logistic.fit` over all pairs j of all prompts i, each pair with weight 1/nᵢ: a prompt counts once
    se = max(deviation of the resampled θ̂, model error of θ̂)
    interval: quantiles of the resampled θ̂, widened on each side to θ̂ ± z · model error
    p = 2 (1 − Φ(|θ̂| / se)),  of θ = 0

    Where length separates wins from losses, or every response of the policy is longer, the data contains no information
    about equal length. The bootstrap interval does not show this, because the ridge alone determines the fit of every
    resample; the model error does. Its weights are 3nᵢ / (2√nᵢ + 1) a prompt: so many independent comparisons have the
    information of all pairs of √nᵢ with √nᵢ independent answers (variance of the Mann-Whitney statistic).

    Args:
        each: Outcome of each pair of answers: 1, ½ or 0; NaN where a pair does not count. (P, n)
        extra: Length of the policy's response minus the reference's, tokens. (P, n)
        ridge: λ > 0; has about the weight of 4 λ prompts.
        resampling: Number of resamples, confidence and seed. All resamples use the s of all prompts.

    Returns:
        Rate, interval and test over the prompts that have a pair.

    Raises:
        ValueError: The shapes differ or there is no pair.
    """
    if each.shape != extra.shape or each.ndim != 2 or not np.isfinite(each).any():
        raise ValueError(f"outcomes and lengths must be two aligned (P, n) arrays, got {each.shape} and {extra.shape}")
    counted = np.isfinite(each)
    prompts = counted.any(1)
    each, extra, counted = each[prompts], extra[prompts], counted[prompts]
    covariate = scaled(extra, root_mean_square(extra, counted))
    # prompts alike in outcomes and lengths are one row: as in `bootstrap_interval`, the order cannot matter
    pairs = np.stack((np.where(counted, each, -1), np.where(counted, covariate, 0)), axis=-1)
    order = np.lexsort((pairs[..., 1], pairs[..., 0]), axis=1)
    rows = np.take_along_axis(pairs, order[..., None], axis=1).reshape(len(pairs), -1)
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    each, covariate = np.moveaxis(distinct.reshape(len(distinct), -1, 2), -1, 0)
    owner = np.nonzero(each >= 0)[0]
    size = (each >= 0).sum(1)
    design = np.stack((np.ones(owner.size), covariate[each >= 0]), axis=1)
    outcomes = each[each >= 0]

    random = np.random.default_rng(resampling.seed)
    drawn = random.multinomial(len(pairs), counts / len(pairs), size=resampling.samples)
    parts = np.array_split(drawn, -(-len(drawn) * owner.size // AT_ONCE))
    found = fit((counts / size)[None, owner], outcomes, design, ridge)
    thetas = np.concatenate([fit((part / size)[:, owner], outcomes, design, ridge, found[0])[:, 0] for part in parts])
    worth = 3 / (2 * np.sqrt(size) + 1)  # of a pair, in independent comparisons
    error = float(standard_errors((counts * worth)[None, owner], found, design, ridge)[0, 0])

    normal, tail, theta = NormalDist(), (1 - resampling.confidence) / 2, float(found[0, 0])
    low, high = np.quantile(thetas, (tail, 1 - tail))
    reach = normal.inv_cdf(1 - tail) * error
    value, low, high = sigmoid(np.array([theta, min(low, theta - reach), max(high, theta + reach)]))
    p_value = 2 * normal.cdf(-abs(theta) / max(error, float(thetas.std())))
    return Rate(float(value), Interval(float(low), float(high)), p_value, p_value, len(pairs))


def root_mean_square(extra: Floats, counted: NDArray[np.bool_]) -> float:
    """Return s of differences in length over the pairs that count; each prompt counts once. (P, n), (P, n)"""
    weights = counted / counted.sum(1, keepdims=True)
    return float(np.sqrt((weights * extra**2).sum() / len(extra)))


def scaled(extra: Floats, scale: float) -> Floats:
    """Return tanh(d / s): a difference in length as a feature; 0 where all lengths are equal."""
    return np.tanh(extra / scale) if scale else np.zeros_like(extra)
