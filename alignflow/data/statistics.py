"""Statistics of preference data: lengths, length bias and turns."""

import math
from collections import Counter
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
Z = NormalDist().inv_cdf(0.975)  # of the 95 % intervals
BINS = 24
"""Bars of the length histograms."""


def quantiles(lengths: NDArray[np.uint32]) -> dict[str, float]:
    """Return mean, maximum and quantiles of lengths, by name; empty if there are no lengths."""
    if not lengths.size:
        return {}
    found = np.quantile(lengths, QUANTILES, method="inverted_cdf").tolist()
    named = {f"{round(100 * q)}%": float(value) for q, value in zip(QUANTILES, found, strict=True)}
    return {"mean": float(lengths.mean()), **named, "max": float(lengths.max())}


def length_bias(chosen: NDArray[np.uint32], rejected: NDArray[np.uint32]) -> dict[str, float]:
    """Return how well length alone predicts which answer is better.

    Args:
        chosen: lengths of the better answers. (N,)
        rejected: lengths of the worse answers. (N,)

    Returns:
        ``shorter``, ``longer``, ``equal``: shares of pairs by the chosen answer's length; ``difference``, ``low``,
        ``high``: mean of chosen minus rejected with its 95 % interval (normal). Empty if there is no pair.
    """
    if not chosen.size:
        return {}
    difference = chosen.astype(np.float64) - rejected.astype(np.float64)
    error = float(difference.std(ddof=1)) / math.sqrt(difference.size) if difference.size > 1 else 0.0
    mean = float(difference.mean())
    return {
        "pairs": float(difference.size),
        "shorter": float((difference < 0).mean()),
        "longer": float((difference > 0).mean()),
        "equal": float((difference == 0).mean()),
        "difference": mean,
        "low": mean - Z * error,
        "high": mean + Z * error,
    }


def histogram(chosen: NDArray[np.uint32], rejected: NDArray[np.uint32]) -> dict[str, list[float]]:
    """Return histograms of both kinds of answers with common bins; the longest 1 % of answers are in the last bin."""
    both = np.concatenate([chosen, rejected])
    if not both.size:
        return {}
    last = max(float(np.quantile(both, 0.99)), 1.0)
    edges = np.linspace(0, last, BINS + 1)
    counts = [np.histogram(np.minimum(part, last), edges)[0].astype(float).tolist() for part in (chosen, rejected)]
    return {"edges": edges.tolist(), "chosen": counts[0], "rejected": counts[1]}


def counted(values: NDArray[np.uint16], most: int) -> dict[str, int]:
    """Return how often each number occurs; numbers above ``most`` are counted together."""
    found = Counter(np.minimum(values, most + 1).tolist())
    return {str(n) if n <= most else f"more than {most}": found[n] for n in sorted(found)}


def flat(statistics: Mapping[str, Any]) -> dict[str, float]:
    """Return the statistics that are metrics of the stage."""
    bias = statistics["length_bias"]
    return {
        "prompt_length/mean": statistics["prompt_length"].get("mean", 0.0),
        "chosen_length/mean": statistics["chosen_length"].get("mean", 0.0),
        "rejected_length/mean": statistics["rejected_length"].get("mean", 0.0),
        **(
            {
                "chosen_shorter_fraction": bias["shorter"],
                "length_difference/mean": bias["difference"],
                "length_difference/low": bias["low"],
                "length_difference/high": bias["high"],
            }
            if bias
            else {}
        ),
    }
