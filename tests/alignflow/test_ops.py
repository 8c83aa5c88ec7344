"""Masked sums, whitening, KL estimators and the chunked log-probs."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from alignflow import ops
from alignflow.ops import importance_weights, kl_k1, kl_k3, masked_mean, masked_sum, token_logprobs, whiten
from tests import reference
from tests.close import EXACT, FLOAT32, FLOAT64, LOOSE, close

POISON = [math.nan, math.inf, 1e9]


def test_masked_sum_and_mean_by_hand():
    """Row one counts 1 and 3, row two counts 5: sums 4 and 5, mean 9/3."""
    values = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    close(masked_sum(values, mask), [4.0, 5.0], EXACT)
    close(masked_mean(values, mask), 3.0, EXACT)


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("function", [masked_sum, masked_mean, whiten])
def test_padding_may_hold_anything(function: Callable[..., torch.Tensor], poison: float):
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
    close(function(values.masked_fill(~mask, poison), mask), function(values.masked_fill(~mask, 0.0), mask), EXACT)


def test_nothing_to_count_gives_zero():
    assert masked_mean(torch.tensor([math.nan]), torch.tensor([False])) == 0.0


def test_whitened_entries_equal_the_loop():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 3 + 5
    mask = torch.rand(4, 6, generator=generator) < 0.6
    expected = reference.whiten(values.tolist(), mask.tolist())
    close(whiten(values, mask), expected, 1e-8)


def test_whitening_by_hand():
    """1, 2, 3 have mean 2 and unbiased deviation 1; the masked 100 does not count."""
    result = whiten(torch.tensor([[1.0, 2, 3, 100]]), torch.tensor([[True, True, True, False]]))
    close(result, [[-1.0, 0, 1, 0]])


def test_whitening_equal_or_single_entries_gives_zero():
    ones = torch.ones(2, 2)
    close(whiten(ones, torch.ones(2, 2).bool()), torch.zeros(2, 2), EXACT)
    close(whiten(ones * 7, torch.tensor([[True, False], [False, False]])), torch.zeros(2, 2), EXACT)


def test_kl_estimators_by_hand():
    """log-probs log 1/2 and log 1/4: k1 = log 2; k3 = 1/2 + log 2 - 1."""
    p, q = torch.tensor([[math.log(0.5)], [math.log(0.25)]], dtype=torch.float64)
    close(kl_k1(p, q), [math.log(2)], FLOAT64)
    close(kl_k3(p, q), [0.5 + math.log(2) - 1], FLOAT64)


def test_whitening_around_the_mean_leaves_it():
    """Values 1, 2, 6: mean 3, deviation sqrt(7); with the mean kept they average 3 again."""
    values = torch.tensor([[1.0, 2, 6, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    found = whiten(values, mask, keep_mean=True)
    close(found, [[3 - 2 / math.sqrt(7), 3 - 1 / math.sqrt(7), 3 + 3 / math.sqrt(7), 0.0]], 1e-7)
    close(whiten(values, mask.cumsum(1).eq(1) & mask, keep_mean=True), [[1.0, 0, 0, 0]], FLOAT64)


def test_both_estimators_average_to_the_kl_and_k3_is_never_negative():
    """Sum of p times the estimator over the whole distribution is KL(p||q), with no sampling."""
    generator = torch.Generator().manual_seed(2)
    p, q = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(-1)
    kl = sum(math.exp(a) * (a - b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    close((p.exp() * kl_k1(p, q)).sum(), kl, FLOAT64)
    close((p.exp() * kl_k3(p, q)).sum(), kl, FLOAT64)
    assert (kl_k3(p, q) >= 0).all()
    assert kl_k3(p, p).eq(0).all()


def test_k3_of_hopeless_tokens_is_finite():
    assert kl_k3(torch.tensor([-1e4]), torch.tensor([0.0])).isfinite().all()


def test_k3_is_precise_for_tiny_differences():
    """exp(d) - d - 1 = d^2 / 2 + ...; at d = 1e-3 in float32 the plain form would have lost most digits."""
    close(kl_k3(torch.tensor([0.0]), torch.tensor([1e-3])) * 1e6, [0.5001667], LOOSE)


def test_k3_passes_gradcheck():
    values = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.autograd.gradcheck(kl_k3, (values[0].requires_grad_(), values[1].requires_grad_()))


@pytest.mark.parametrize("pulls", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.3)], ids=["logprobs", "entropy", "both"])
@pytest.mark.parametrize("chunk", [1, 3, 11, 64])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, 0.0), (0.7, 0.0), (1.0, 2.0), (1.3, 2.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_logprobs_and_entropies_equal_the_plain_form_with_their_gradients(
    chunk: int, temperature: float, softcap: float, bias: bool, pulls: tuple[float, float]
):
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(19, 6, generator=generator)
    weight = torch.randn(11, 6, generator=generator)
    b = torch.randn(11, generator=generator) if bias else None
    targets = torch.randint(11, (19,), generator=generator)
    first, second = torch.randn(2, 19, generator=generator)
    ours, plain = hidden.clone().requires_grad_(), hidden.double().requires_grad_()

    logits = torch.nn.functional.linear(plain, weight.double(), None if b is None else b.double())
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    full = torch.log_softmax(logits / temperature, -1)
    expected = full[torch.arange(19), targets]
    uncertainty = -(full.exp() * full).sum(-1)
    (pulls[0] * (expected * first.double()).sum() + pulls[1] * (uncertainty * second.double()).sum()).backward()

    logprobs, entropy = token_logprobs(
        ours, weight, targets, bias=b, temperature=temperature, softcap=softcap, chunk=chunk, entropy=True
    )
    parts = [(pull, values, up) for pull, values, up in zip(pulls, (logprobs, entropy), (first, second), strict=True)]
    sum(pull * (values * up).sum() for pull, values, up in parts if pull).backward()
    assert ours.grad is not None
    assert plain.grad is not None
    close(logprobs, expected)
    close(entropy, uncertainty)
    close(ours.grad, plain.grad, FLOAT32)


def test_logprobs_by_the_loop():
    """One hidden unit, weights 1, 2, 3 and hidden 1: logits 1, 2, 3."""
    logprobs, entropy = token_logprobs(torch.ones(1, 1), torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1]))
    close(logprobs, [reference.log_softmax([1.0, 2.0, 3.0])[1]])
    assert entropy.eq(0).all()


def test_entropies_of_large_logits_keep_their_digits():
    """A certain token, two equally likely tokens, and equal logits in the thousands."""
    logits = torch.tensor([[90.0, 0.0, 0.0, 0.0], [-2e3, 1e3, 1e3, -2e3], [5e3, 5e3, 5e3, 5e3]])
    _, entropy = token_logprobs(logits, torch.eye(4), torch.zeros(3, dtype=torch.long), entropy=True)
    close(entropy, [0.0, math.log(2), math.log(4)], 1e-7)


def test_entropies_that_were_not_asked_for_have_no_gradient():
    logprobs, entropy = token_logprobs(torch.ones(2, 3, requires_grad=True), torch.ones(5, 3), torch.zeros(2).long())
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_no_response_token_gives_no_logprob():
    hidden = torch.zeros(0, 4, requires_grad=True)
    logprobs, _ = token_logprobs(hidden, torch.randn(5, 4), torch.zeros(0, dtype=torch.long))
    logprobs.sum().backward()
    assert logprobs.shape == (0,)


def test_logprobs_of_bfloat16_states_are_float32_and_near():
    generator = torch.Generator().manual_seed(5)
    hidden, weight = torch.randn(5, 8, generator=generator), torch.randn(9, 8, generator=generator)
    targets = torch.tensor([0, 8, 3, 3, 1])
    logprobs, _ = token_logprobs(hidden.bfloat16(), weight.bfloat16(), targets)
    assert logprobs.dtype == torch.float32
    close(logprobs, torch.log_softmax(hidden @ weight.T, -1)[torch.arange(5), targets], 3e-2)


def test_gradients_of_bfloat16_states_keep_their_digits_where_a_token_is_sure():
    """Log-probs down to −2e-5: own embedding and expected one nearly cancel; their difference is rounded, not they."""
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(9, 8, generator=generator).bfloat16()
    hidden = weight[:3].clone().requires_grad_()
    plain = hidden.detach().double().requires_grad_()
    targets = torch.arange(3)
    expected = torch.log_softmax(plain @ weight.double().T, -1)[targets, targets]
    expected.sum().backward()
    logprobs, _ = token_logprobs(hidden, weight, targets)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert plain.grad is not None
    for found, wanted in zip(hidden.grad, plain.grad, strict=True):
        close(found / wanted.norm(), wanted / wanted.norm(), 0.03)


def test_whitening_two_entries_by_hand():
    """1 and 3: mean 2, unbiased deviation sqrt(2)."""
    found = whiten(torch.tensor([[1.0, 3.0]], dtype=torch.float64), torch.ones(1, 2).bool())
    close(found, [[-1 / math.sqrt(2), 1 / math.sqrt(2)]], 1e-8)


def test_k3_takes_log_ratios_up_to_twenty():
    """Beyond, it stays at exp(20) - 21 above and at exp(-20) + 19 below, and has no slope."""
    logprobs = torch.tensor([-30.0, 30.0], dtype=torch.float64, requires_grad=True)
    values = kl_k3(logprobs, torch.zeros(2, dtype=torch.float64))
    close(values[0], math.exp(20) - 21, FLOAT64)
    close(values[1], math.exp(-20) + 19, FLOAT64)
    values.sum().backward()
    close(logprobs.grad, [0.0, 0.0], EXACT)


def test_no_more_logits_than_a_chunk_exist_at_once(monkeypatch: pytest.MonkeyPatch):
    """Seven positions in chunks of 3: forward, and for a gradient of the entropies once more."""
    seen, plain = list[int](), ops.product

    def counting(hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(hidden))
        return plain(hidden, *rest)

    monkeypatch.setattr(ops, "product", counting)
    hidden = torch.randn(7, 4, generator=torch.Generator().manual_seed(7)).requires_grad_()
    targets = torch.zeros(7, dtype=torch.long)
    logprobs, entropies = token_logprobs(hidden, torch.ones(5, 4), targets, chunk=3, entropy=True)
    logprobs.sum().backward(retain_graph=True)
    assert seen == [3, 3, 1]
    entropies.sum().backward()
    assert seen == [3, 3, 1] * 2


def test_no_more_logits_than_a_few_rows_are_float32_at_once(monkeypatch: pytest.MonkeyPatch):
    """A chunk of one row more than that: forward, and for a gradient of the entropies once more."""
    seen, plain = list[int](), ops._logits

    def counting(products: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor | float]:
        seen.append(len(products))
        return plain(products, *rest)

    monkeypatch.setattr(ops, "_logits", counting)
    count = ops.ROWS + 1
    hidden = torch.randn(count, 4, generator=torch.Generator().manual_seed(7)).requires_grad_()
    targets = torch.zeros(count, dtype=torch.long)
    logprobs, entropies = token_logprobs(hidden, torch.ones(5, 4), targets, entropy=True)
    (logprobs + entropies).sum().backward()
    assert seen == [ops.ROWS, 1] * 2


def test_the_softmax_of_bfloat16_logits_is_taken_in_float32():
    """Only the logits are rounded to bfloat16, with any default dtype of new tensors."""
    generator = torch.Generator().manual_seed(5)
    hidden, weight = (torch.randn(n, 8, generator=generator).bfloat16() for n in (5, 9))
    targets = torch.tensor([0, 8, 3, 3, 1])
    torch.set_default_dtype(torch.bfloat16)
    try:
        logprobs, _ = token_logprobs(hidden, weight, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = torch.log_softmax(torch.nn.functional.linear(hidden, weight).float(), -1)[torch.arange(5), targets]
    assert logprobs.dtype == torch.float32
    close(logprobs, expected)


def test_logprobs_are_on_the_device_of_the_states():
    """The meta device computes nothing, but raises if devices are mixed."""
    hidden, targets = torch.empty(3, 4, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    logprobs, entropies = token_logprobs(hidden, torch.empty(5, 4, device="meta"), targets, entropy=True)
    assert logprobs.device.type == entropies.device.type == "meta"


def test_importance_weights_by_hand():
    """Ratios 1/2, 1 and 4 under cap 2; a difference of 1,000 nats stays finite."""
    new = torch.tensor([math.log(0.5), 0.0, math.log(4.0), 1000.0], dtype=torch.float64)
    close(importance_weights(new, torch.zeros_like(new), cap=2.0), [0.5, 1.0, 2.0, 2.0], FLOAT64)
