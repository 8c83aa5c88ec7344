"""Slow float64 loops written from the papers; they import nothing from alignflow and no tensor library.

Rows are lists of numbers; a mask is a row of booleans, True where a token counts.
"""

from math import exp, log, sqrt

Row = list[float]
Mask = list[bool]


def gae(rewards: Row, values: Row, mask: Mask, gamma: float, lam: float) -> tuple[Row, Row]:
    """Schulman et al. 2016: the sum of (gamma lambda)^l delta_{t+l}, term by term, over the tokens that count."""
    places = [t for t, counts in enumerate(mask) if counts]
    advantages, returns = [0.0] * len(mask), [0.0] * len(mask)
    for i, t in enumerate(places):
        for j in range(i, len(places)):
            after = values[places[j + 1]] if j + 1 < len(places) else 0.0
            delta = rewards[places[j]] + gamma * after - values[places[j]]
            advantages[t] += (gamma * lam) ** (j - i) * delta
        returns[t] = advantages[t] + values[t]
    return advantages, returns


def whiten(rows: list[Row], masks: list[Mask], keep_mean: bool = False) -> list[Row]:
    counted = [v for row, mask in zip(rows, masks, strict=True) for v, m in zip(row, mask, strict=True) if m]
    mean = sum(counted) / len(counted)
    deviation = sqrt(sum((v - mean) ** 2 for v in counted) / (len(counted) - 1))
    back = mean if keep_mean else 0.0
    return [
        [(v - mean) / deviation + back if m else 0.0 for v, m in zip(row, mask, strict=True)]
        for row, mask in zip(rows, masks, strict=True)
    ]


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


def dpo(w: Row, lo: Row, ref_w: Row, ref_l: Row, beta: float, loss: str, smoothing: float) -> Row:
    """Rafailov et al. 2023 Eq. 7 (and cDPO), Azar et al. 2023 Eq. 17, Liu et al. 2023 (RSO), Chowdhury et al. 2024."""
    result = []
    for pw, pl, rw, rl in zip(w, lo, ref_w, ref_l, strict=True):
        h = (pw - rw) - (pl - rl)
        one = {
            "sigmoid": lambda d: -log(sigmoid(beta * d)),
            "ipo": lambda d: (d - 1 / (2 * beta)) ** 2,
            "hinge": lambda d: max(0.0, 1 - beta * d),
            "robust": lambda d: -log(sigmoid(beta * d)),
        }[loss]
        if loss == "robust":
            result.append(((1 - smoothing) * one(h) - smoothing * one(-h)) / (1 - 2 * smoothing))
        else:
            result.append((1 - smoothing) * one(h) + smoothing * one(-h))
    return result


def simpo(w: Row, lo: Row, beta: float, margin: float, smoothing: float) -> Row:
    """Meng et al. 2024 Eq. 6 on log-probs per token."""
    hs = [beta * (pw - pl) - margin for pw, pl in zip(w, lo, strict=True)]
    return [-(1 - smoothing) * log(sigmoid(h)) - smoothing * log(sigmoid(-h)) for h in hs]


def wins(scores: Row, temperature: float, itself: bool) -> Row:
    """Wu et al. 2024 Eq. 3.5 with itself, Swamy et al. 2024 without: the mean probability to beat the others."""
    result = []
    for i, mine in enumerate(scores):
        won = [sigmoid((mine - other) / temperature) for j, other in enumerate(scores) if itself or j != i]
        result.append(sum(won) / len(won))
    return result


def sppo(w: Row, lo: Row, ref_w: Row, ref_l: Row, win_w: Row, win_l: Row, beta: float, smoothing: float) -> Row:
    """Wu et al. 2024 Eq. 3.6, eta = 1 / beta, the mean over both responses of a pair."""
    result = []
    for pw, pl, rw, rl, ww, wl in zip(w, lo, ref_w, ref_l, win_w, win_l, strict=True):
        squares = 0.0
        for ratio, win in ((pw - rw, ww), (pl - rl, wl)):
            flipped = (1 - smoothing) * win + smoothing * (1 - win)
            squares += (ratio - (1 / beta) * (flipped - 0.5)) ** 2
        result.append(squares / 2)
    return result


def puct(visits: int, total: float, logprob: float, length: int, parent: int, c: float, exponent: float) -> float:
    """Xie et al. 2024 section 2.1, with the prior of their code."""
    return total / visits + c * exp(logprob / length**exponent) * sqrt(parent) / (1 + visits)


def reward(chosen: Row, rejected: Row, margins: Row, center: float) -> Row:
    return [-log(sigmoid(w - r - m)) + center * (w + r) ** 2 for w, r, m in zip(chosen, rejected, margins, strict=True)]


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(high, x))


def surrogate(logprob: float, old: float, advantage: float, low: float, high: float) -> float:
    ratio = exp(logprob - old)
    return -min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)


def value(v: float, old: float, target: float, span: float) -> float:
    clipped = clip(v, old - span, old + span)
    return 0.5 * max((v - target) ** 2, (clipped - target) ** 2)


def token_rewards(score: float, logprobs: Row, ref: Row, mask: Mask, kl_coef: float, estimator: str = "k1") -> Row:
    penalty = {"k1": k1, "k3": k3}[estimator]
    last = max(t for t, counts in enumerate(mask) if counts)
    result = [0.0] * len(mask)
    for t, counts in enumerate(mask):
        if counts:
            result[t] = -kl_coef * penalty(logprobs[t], ref[t]) + (score if t == last else 0.0)
    return result


def k1(logprob: float, ref: float) -> float:
    return logprob - ref


def k3(logprob: float, ref: float) -> float:
    return exp(ref - logprob) - (ref - logprob) - 1


def group_advantages(scores: Row, epsilon: float, scale: bool) -> Row:
    mean = sum(scores) / len(scores)
    deviation = sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1))
    return [(s - mean) / (deviation + epsilon if scale else 1.0) for s in scores]


def grpo(
    logprobs: list[Row],
    old: list[Row],
    ref: list[Row],
    advantages: Row,
    masks: list[Mask],
    beta: float,
    low: float,
    high: float,
    normalization: str,
    longest: int,
) -> float:
    """The whole loss of a batch: Shao et al. 2024 Eq. 3; Yu et al. 2025 (dapo); Liu et al. 2025 (dr_grpo)."""
    responses = [
        [surrogate(p, o, a, low, high) + beta * k3(p, r) for p, o, r, m in zip(ps, os, rs, ms, strict=True) if m]
        for ps, os, rs, a, ms in zip(logprobs, old, ref, advantages, masks, strict=True)
    ]
    if normalization == "grpo":
        return sum(sum(tokens) / len(tokens) for tokens in responses) / len(responses)
    total = sum(sum(tokens) for tokens in responses)
    return total / (sum(map(len, responses)) if normalization == "dapo" else len(responses) * longest)


def log_softmax(logits: Row) -> Row:
    top = max(logits)
    normaliser = top + log(sum(exp(x - top) for x in logits))
    return [x - normaliser for x in logits]
