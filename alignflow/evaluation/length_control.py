"""Length-controlled win rate: an estimate of the win rate between answers of equal length.

Dubois et al. 2024, *Length-Controlled AlpacaEval* (arXiv:2404.04475), section 3: a logistic regression of the
outcome on the difference of lengths, evaluated at difference 0. Departures: it compares one pair of models, so
there is no term for the difficulty of a prompt; a ridge penalty keeps both coefficients finite when prompts are few or
separable; the difference is divided by its root mean square, not by its standard deviation, so that 0 stays 0.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from alignflow.evaluation.win_rates import Floats, Interval, Mean, Resampling

STEPS = 100
"""Maximum number of Newton steps. A step has at most length 1, so a distant optimum needs several."""
TOLERANCE = 1e-9
AT_ONCE = 2_000_000
"""Number of resamples times prompts in one fit; bounds memory."""


def length_controlled(each: Floats, extra: Floats, ridge: float, resampling: Resampling) -> Mean:
    """Return the win rate at equal length, with a bootstrap interval that is widened where the data is not informative.

    P(win) = σ(θ + φ · tanh(dᵢ / s)),  s² = mean d²;  the rate is σ(θ̂)
    interval: that of the bootstrap, widened on each side to σ(θ̂ ± z · se), se² = [H⁻¹]_θθ of the penalised fit
    (θ̂, φ̂) = argmin −Σᵢ [oᵢ log pᵢ + (1 − oᵢ) log(1 − pᵢ)] + ½ λ (θ² + φ²)

    Where length separates wins from losses, or every response of the policy is longer, the data contains no information
    about equal length. The bootstrap interval does not show this, because the ridge alone determines the fit of every
    resample; the standard error se does. Otherwise the two intervals are about the same.

    Args:
        each: Outcome on each prompt: 1, ½ or 0. (P,)
        extra: Length of the policy's response minus the reference's, tokens. (P,)
        ridge: λ > 0; has about the weight of 4 λ prompts.
        resampling: Number of resamples, confidence and seed. All resamples use the s of all prompts.

    Returns:
        Rate and interval.

    Raises:
        ValueError: The shapes differ or there is no prompt.
    """
    if each.shape != extra.shape or not each.size:
        raise ValueError(f"outcomes and lengths must be two aligned (P,) arrays, got {each.shape} and {extra.shape}")
    scale = float(np.sqrt(np.mean(extra**2)))
    covariate = np.tanh(extra / scale) if scale else np.zeros_like(extra)
    # prompts with equal outcome and length are one column: the order of prompts does not matter (`bootstrap_interval`)
    (each, covariate), counts = np.unique(np.stack((each, covariate)), axis=1, return_counts=True)
    size = int(counts.sum())
    random = np.random.default_rng(resampling.seed)
    drawn = random.multinomial(size, counts / size, size=resampling.samples)
    parts = -(-drawn.size // AT_ONCE)
    thetas = np.concatenate([_fit(part, each, covariate, ridge)[0] for part in np.array_split(drawn, parts)])
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(thetas, (tail, 1 - tail))
    theta, error = (float(found[0]) for found in _fit(counts[None], each, covariate, ridge))
    reach = NormalDist().inv_cdf(1 - tail) * error
    value, low, high = _sigmoid(np.array([theta, min(low, theta - reach), max(high, theta + reach)]))
    return Mean(float(value), Interval(float(low), float(high)))


def _fit(weights: NDArray[np.int64], each: Floats, covariate: Floats, ridge: float) -> tuple[Floats, Floats]:
    """Fit each row of weights (B, columns) by damped Newton steps; return θ̂ and its standard error. (B,) each"""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(STEPS):
        p = _sigmoid(theta[:, None] + phi[:, None] * covariate)
        left = weights * (each - p)
        curve = weights * p * (1 - p)
        gradient = left.sum(1) - ridge * theta, left @ covariate - ridge * phi
        a, b, d = curve.sum(1) + ridge, curve @ covariate, curve @ covariate**2 + ridge
        determinant = a * d - b**2
        step = np.stack((d * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0])) / determinant
        step /= np.maximum(1, np.linalg.norm(step, axis=0))
        theta, phi = theta + step[0], phi + step[1]
        if np.abs(step).max() < TOLERANCE:
            break
    return theta, np.sqrt(d / determinant)


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * x))  # never overflows
