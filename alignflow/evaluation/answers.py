"""Statistics of one policy's answers to unseen prompts: KL to the reference, repetition, diversity and language."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from alignflow.types import Sequences


def exact_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p‖q) = Σ_v p(v)·(log p(v) − log q(v)) of each row. (N, V), (N, V) -> (N,) nats"""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def response_kl(
    policy_hidden: Tensor,
    reference_hidden: Tensor,
    weight: Tensor,
    batch: Sequences,
    *,
    temperature: float,
    bias: Tensor | None,
    softcap: float,
    chunk: int = 128,
) -> Tensor:
    """Return Σ_t KL(π(·|x, y_<t) ‖ π_ref(·|x, y_<t)) along each response, exact at every token.

    Both distributions are taken at one temperature. At that of sampling, the mean over samples is the KL of the policy
    that sampled. At each token the KL is taken over the whole vocabulary. Under samples of π its sum has the same
    expectation as the sum of log-ratios of the sampled tokens, but it is never negative and has a lower variance.

    Args:
        policy_hidden: last hidden states of the policy. (B, S, H)
        reference_hidden: last hidden states of the reference. (B, S, H)
        weight: output embedding. (V, H)
        batch: prompts with responses. B rows
        temperature: divides the logits of both.
        bias: bias of the output embedding. (V,)
        softcap: cap of the logits, 0 for none.
        chunk: number of positions whose logits are computed together; bounds memory.

    Returns:
        Nats per response. (B,)
    """
    mask = batch.response_mask[:, 1:]
    mine, other = policy_hidden[:, :-1][mask], reference_hidden[:, :-1][mask]
    values = torch.cat(
        [
            exact_kl(*(_log_softmax(states, weight, bias, softcap, temperature) for states in pair))
            for pair in zip(torch.split(mine, chunk), torch.split(other, chunk), strict=True)
        ]
    )
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values).sum(1)


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return torch.log_softmax((softcap * torch.tanh(logits / softcap) if softcap else logits) / temperature, -1)


# a word is a run of word characters; in Chinese and Japanese, which write no spaces, it is a single character
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())


def repetition(text: str) -> float:
    """Return the share of word trigrams that already occurred in the text: 1 − distinct / all; 0 below three words."""
    trigrams = _ngrams(words(text), 3)
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct-n: number of distinct word n-grams of all texts / number of words; 0 if there is no word.

    Li et al. 2016, arXiv:1510.03055. No n-gram spans two texts.
    """
    split = [words(text) for text in texts]
    total = sum(map(len, split))
    return len({gram for one in split for gram in _ngrams(one, n)}) / total if total else 0.0


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def language_drift(found: Sequence[str | None], wanted: Sequence[str | None]) -> float:
    """Return the share of answers whose language is known and differs from the known language of their prompt."""
    return sum(None not in pair and pair[0] != pair[1] for pair in zip(found, wanted, strict=True)) / len(found)
