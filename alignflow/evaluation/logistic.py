"""Penalised logistic regression on weighted rows, many weightings at once (for a bootstrap)."""

import numpy as np

from alignflow.evaluation.win_rates import Floats

STEPS = 100
"""Newton steps; each is cut to length 1, so far-off optima need some."""
TOLERANCE = 1e-9


def fit(weights: Floats, outcomes: Floats, design: Floats, ridge: float, start: Floats | None = None) -> Floats:
    """Return β̂ of each weighting by damped Newton steps.

    β̂ = argmin −Σᵢ wᵢ [oᵢ log pᵢ + (1 − oᵢ) log(1 − pᵢ)] + ½ λ |β|²,  pᵢ = σ(βᵀxᵢ)

    Args:
        weights: wᵢ of the rows, one line a weighting. (B, N)
        outcomes: oᵢ in [0, 1]. (N,)
        design: xᵢ; an intercept is a column of ones. (N, K)
        ridge: λ > 0, on every coefficient.
        start: where the search begins; zeros without it. (K,)

    Returns:
        Coefficients. (B, K)
    """
    coefficients = np.tile(np.zeros(design.shape[1]) if start is None else start, (len(weights), 1))
    for _ in range(STEPS):
        p = sigmoid(coefficients @ design.T)
        gradient = (weights * (outcomes - p)) @ design - ridge * coefficients
        step = np.linalg.solve(_curvature(weights, p, design, ridge), gradient[:, :, None])[:, :, 0]
        step /= np.maximum(1, np.linalg.norm(step, axis=1, keepdims=True))
        coefficients = coefficients + step
        if np.abs(step).max() < TOLERANCE:
            break
    return coefficients


def standard_errors(weights: Floats, coefficients: Floats, design: Floats, ridge: float) -> Floats:
    """Return the square roots of the diagonal of H⁻¹, H the curvature of the penalised fit. (B, N), (B, K) -> (B, K)"""
    curvature = _curvature(weights, sigmoid(coefficients @ design.T), design, ridge)
    return np.array([np.sqrt(np.diag(each)) for each in np.linalg.inv(curvature)])


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + e⁻ˣ); it never overflows."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def _curvature(weights: Floats, p: Floats, design: Floats, ridge: float) -> Floats:
    rows, k = design.shape
    products = (design[:, :, None] * design[:, None, :]).reshape(rows, k * k)
    return ((weights * p * (1 - p)) @ products).reshape(-1, k, k) + ridge * np.eye(k)
