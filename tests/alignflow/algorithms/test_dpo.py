"""The DPO losses and their step."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.dpo import DPOConfig, PairBatch, count, dpo_loss, simpo_loss, sppo_loss, step
from tests import reference
from tests.close import EXACT, FLOAT64, close
from tests.toy import Given, plain_numbers, random_like, rows

LOSSES = ["sigmoid", "ipo", "hinge"]  # robust at no label noise is sigmoid; it has tests of its own
ALL = [*LOSSES, "robust"]


def logps(seed: int = 0, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(4, size, generator=generator, dtype=torch.float64) * 4 - 10)


def loss_of(values: list[Tensor], loss: str = "sigmoid", beta: float = 0.1, smoothing: float = 0.0) -> Tensor:
    return dpo_loss(*values, beta=beta, loss=loss, label_smoothing=smoothing)


def test_losses_by_hand():
    """Log-ratio difference (-1 + 3) - (-5 + 4) = 3, beta 1/2, so h = 3/2.

    sigmoid: log(1 + e^-1.5); hinge: max(0, 1 - 1.5) = 0; ipo: (3 - 1)^2 = 4.
    """
    values = [torch.tensor([x]).double() for x in (-1.0, -5.0, -3.0, -4.0)]
    close(loss_of(values, "sigmoid", 0.5), [math.log1p(math.exp(-1.5))], FLOAT64)
    close(loss_of(values, "hinge", 0.5), [0.0], EXACT)
    close(loss_of(values, "ipo", 0.5), [4.0], FLOAT64)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.05, 0.7])
def test_losses_equal_the_loop(loss: str, smoothing: float, beta: float):
    values = logps()
    close(
        loss_of(values, loss, beta, smoothing),
        reference.dpo(*(v.tolist() for v in values), beta, loss, smoothing),
        FLOAT64,
    )


def test_equal_policies_give_log_two():
    chosen, rejected, *_ = logps()
    close(loss_of([chosen, rejected, chosen, rejected]), [math.log(2)] * 6, FLOAT64)


def test_the_gradient_at_equal_policies_is_half_beta():
    """d/dx -log sigmoid(beta x) at 0 is -beta / 2 for chosen and +beta / 2 for rejected."""
    chosen, rejected, *_ = logps()
    c, r = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    loss_of([c, r, chosen, rejected], beta=0.3).sum().backward()
    close(c.grad, [-0.15] * 6, FLOAT64)
    close(r.grad, [0.15] * 6, FLOAT64)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_flipped_label_swaps_the_loss(loss: str):
    """Smoothing 1 on a pair is smoothing 0 on the pair swapped."""
    w, lo, rw, rl = logps()
    close(loss_of([w, lo, rw, rl], loss, smoothing=1.0), loss_of([lo, w, rl, rw], loss), FLOAT64)


@pytest.mark.parametrize("loss", ALL)
def test_losses_pass_gradcheck(loss: str):
    values = [v.requires_grad_() for v in logps()]
    assert torch.autograd.gradcheck(lambda *v: loss_of(list(v), loss, 0.3, 0.1), values)


def test_robust_loss_over_flipped_labels_is_on_average_that_of_the_true_labels():
    """Unbiasedness: (1 - e) robust(w, l) + e robust(l, w) = sigmoid(w, l), for any e."""
    w, lo, rw, rl = logps()
    for e in (0.1, 0.4):
        seen = (1 - e) * loss_of([w, lo, rw, rl], "robust", smoothing=e) + e * loss_of(
            [lo, w, rl, rw], "robust", smoothing=e
        )
        close(seen, loss_of([w, lo, rw, rl]), FLOAT64)


def test_smoothed_labels_are_least_where_the_policy_gives_them_their_odds():
    """cDPO: the derivative of -(1 - e) log s(h) - e log s(-h) is s(h) - (1 - e), zero at h = log((1 - e) / e)."""
    h = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    loss_of([h, zero, zero, zero], beta=1.0, smoothing=0.1).sum().backward()
    close(h.grad, [0.0], FLOAT64)


@pytest.mark.parametrize("loss", [*ALL, "simpo", "sppo"])
def test_a_smoothing_of_each_pair_equals_the_same_one_for_all(loss: str):
    """And in a batch each pair has its own."""
    models, batch, config, _ = batch_of(loss)
    batch = replace(batch, wins=torch.tensor([0.9, 0.8, 0.1, 0.2], dtype=torch.float64))
    alone = [step(models, batch, replace(config, label_smoothing=e)).losses for e in (0.1, 0.3)]
    mixed = step(models, replace(batch, smoothing=torch.tensor([0.1, 0.3], dtype=torch.float64)), config).losses
    close(mixed, [alone[0][0], alone[1][1]], FLOAT64)


def test_simpo_by_hand():
    """Per-token log-probs -1 and -2, beta 2, margin 0.5: h = 1.5; smoothing 1 turns its sign."""
    w, lo = torch.tensor([-1.0]).double(), torch.tensor([-2.0]).double()
    close(simpo_loss(w, lo, beta=2.0, margin=0.5, label_smoothing=0.0), [math.log1p(math.exp(-1.5))], FLOAT64)
    close(simpo_loss(w, lo, beta=2.0, margin=0.5, label_smoothing=1.0), [math.log1p(math.exp(1.5))], FLOAT64)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_equals_the_loop_and_passes_gradcheck(smoothing: float):
    w, lo, *_ = logps()
    keys = {"beta": 2.5, "margin": 1.2, "label_smoothing": smoothing}
    close(simpo_loss(w, lo, **keys), reference.simpo(w.tolist(), lo.tolist(), 2.5, 1.2, smoothing), FLOAT64)
    assert torch.autograd.gradcheck(lambda a, b: simpo_loss(a, b, **keys), (w.requires_grad_(), lo.requires_grad_()))


def sppo_of(ratios: list[float], wins: list[float], beta: float, smoothing: float = 0.0) -> Tensor:
    given = (torch.tensor(x, dtype=torch.float64) for x in (ratios, wins))
    return sppo_loss(*given, beta=beta, label_smoothing=smoothing)


def test_sppo_by_hand():
    """Beta 1/2, win rates 0.617839 and 0.382161: targets are +-0.235678, and at log-ratios 0 the loss is 0.235678^2.

    Beta 0.1, win rates 0.7 and 0.3: targets +-2; log-ratios 1 and -1 give (1^2 + 1^2) / 2.
    """
    close(sppo_of([0.0, 0.0], [0.617839, 0.382161], 0.5), [0.055544], 1e-6)
    close(sppo_of([1.0, -1.0], [0.7, 0.3], 0.1), [1.0], FLOAT64)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_sppo_equals_the_loop_and_passes_gradcheck(smoothing: float):
    (w, lo, rw, rl), wins = logps(), torch.rand(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ratios = torch.cat([w - rw, lo - rl]).requires_grad_()
    found = sppo_loss(ratios, wins, beta=0.3, label_smoothing=smoothing)
    columns = [v.tolist() for v in (w, lo, rw, rl, *wins.chunk(2))]
    close(found, reference.sppo(*columns, 0.3, smoothing), FLOAT64)
    assert torch.autograd.gradcheck(lambda r: sppo_loss(r, wins, beta=0.3, label_smoothing=smoothing), ratios)


def test_sppo_moves_chosen_and_rejected_each_on_its_own():
    """The gradient is -(P - 1/2) / beta at equal policies; at log-ratios +1 the rejected one is pulled down from 1."""
    ratios = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64, requires_grad=True)
    wins = torch.tensor([0.7, 0.7, 0.3, 0.3], dtype=torch.float64)
    sppo_loss(ratios, wins, beta=0.5, label_smoothing=0.0).sum().backward()
    close(ratios.grad, [-0.4, 1 - 0.4, 0.4, 1 + 0.4], FLOAT64)


def test_an_sppo_step_takes_sums_and_the_win_rates_of_both_sides():
    models, batch, config, kept = batch_of("sppo")
    wins = [0.8, 0.6, 0.3, 0.1]
    batch = replace(batch, wins=torch.tensor(wins, dtype=torch.float64))
    mine = [sum(k) for k in kept]
    output = step(models, batch, replace(config, label_smoothing=0.1))
    assert config.uses_reference
    close(output.losses, reference.sppo(mine[:2], mine[2:], [-1, -2], [-3, -4], wins[:2], wins[2:], 0.4, 0.1), FLOAT64)


def test_hopeless_pairs_stay_finite():
    far = [torch.tensor([x]) for x in (-1e5, 0.0, 0.0, -1e5)]
    assert loss_of(far, beta=0.5).isfinite().all()


def test_an_unknown_loss_is_refused_by_name():
    with pytest.raises(ValueError, match="'kto' is not one of sigmoid, ipo, hinge, robust"):
        loss_of(logps(), "kto")


LENGTHS = [(2, 3), (4, 1), (2, 5), (4, 2)]  # two pairs: chosen rows, then rejected rows


def batch_of(loss: str) -> tuple[Given, PairBatch, DPOConfig, list[list[float]]]:
    sequences = rows(LENGTHS)
    noise = random_like(sequences, 1)
    ref = torch.tensor([-1.0, -2, -3, -4], dtype=torch.float64)
    kept = [[x for x, m in zip(r, k, strict=True) if m] for r, k in _zip(noise, sequences.response_mask[:, 1:])]
    return Given(noise), PairBatch(sequences, ref), DPOConfig(0.4, loss, 0.0, 0.0, 0.0), kept


def _zip(a: Tensor, b: Tensor) -> zip:
    return zip(a.tolist(), b.tolist(), strict=True)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_sums_response_tokens_and_takes_means_for_ipo(loss: str):
    models, batch, config, kept = batch_of(loss)
    size = [len(k) if loss == "ipo" else 1 for k in kept]
    assert [len(k) for k in kept] == [3, 1, 5, 2]
    mine = [sum(k) / n for k, n in zip(kept, size, strict=True)]
    ref = [r / n for r, n in zip([-1.0, -2, -3, -4], size, strict=True)]
    output = step(models, batch, config)
    close(output.losses, reference.dpo(mine[:2], mine[2:], ref[:2], ref[2:], 0.4, loss, 0.0), FLOAT64)
    assert output.mask.all()
    assert count(batch) == 2


def test_a_simpo_step_takes_means_and_no_reference():
    models, batch, config, kept = batch_of("simpo")
    config = replace(config, simpo_margin=0.3)
    assert not config.uses_reference
    assert DPOConfig(0.4, "sigmoid", 0.0, 0.0, 0.0).uses_reference
    mine = [sum(k) / len(k) for k in kept]
    output = step(models, batch, config)
    close(output.losses, reference.simpo(mine[:2], mine[2:], 0.4, 0.3, 0.0), FLOAT64)
    close(output.metrics["rewards/chosen"], [0.4 * m for m in mine[:2]], FLOAT64)
    other = step(models, PairBatch(batch.sequences, batch.ref_logps + 5), config)
    close(other.losses, output.losses, EXACT)


@pytest.mark.parametrize("loss", [*ALL, "simpo"])
def test_the_likelihood_term_is_per_token_of_the_chosen_response(loss: str):
    models, batch, config, kept = batch_of(loss)
    plain, more = step(models, batch, config), step(models, batch, replace(config, nll_coef=0.7))
    nll = [-sum(k) / len(k) for k in kept[:2]]
    close(more.losses - plain.losses, [0.7 * n for n in nll], FLOAT64)
    close(plain.metrics["nll"], nll, FLOAT64)


@pytest.mark.parametrize("loss", [*ALL, "simpo"])
def test_the_metrics_log_sums_whatever_the_loss_takes(loss: str):
    models, batch, config, kept = batch_of(loss)
    metrics = step(models, batch, config).metrics
    close(metrics["logps/chosen"], [sum(k) for k in kept[:2]], FLOAT64)
    close(metrics["logps/rejected"], [sum(k) for k in kept[2:]], FLOAT64)


def test_swapping_a_pair_flips_its_margin_and_accuracy():
    models, batch, config, _ = batch_of("sigmoid")
    swap = torch.tensor([2, 3, 0, 1])
    assert models._logprobs is not None
    sequences = type(batch.sequences)(
        *(x[swap] for x in (batch.sequences.input_ids, batch.sequences.attention_mask, batch.sequences.response_mask))
    )
    there = step(models, batch, config).metrics
    back = step(Given(models._logprobs[swap]), PairBatch(sequences, batch.ref_logps[swap]), config).metrics
    close(back["rewards/margin"], -there["rewards/margin"], EXACT)
    close(back["rewards/accuracy"], 1 - there["rewards/accuracy"], EXACT)
    close(back["logps/chosen"], there["logps/rejected"], EXACT)


def test_padding_may_hold_anything_in_a_step():
    models, batch, config, _ = batch_of("sigmoid")
    assert models._logprobs is not None
    mask = batch.sequences.response_mask[:, 1:]
    dirty = Given(models._logprobs)
    dirty.logprobs = lambda *_, **__: (models._logprobs.masked_fill(~mask, math.nan), None)  # type: ignore[method-assign, union-attr]
    close(step(dirty, batch, config).losses, step(models, batch, config).losses, EXACT)


def test_rewards_are_beta_times_the_log_ratio_of_each_side():
    models, batch, config, kept = batch_of("sigmoid")
    ratios = [sum(k) - r for k, r in zip(kept, [-1.0, -2, -3, -4], strict=True)]
    metrics = step(models, batch, config).metrics
    close(metrics["rewards/chosen"], [0.4 * r for r in ratios[:2]], FLOAT64)
    close(metrics["rewards/rejected"], [0.4 * r for r in ratios[2:]], FLOAT64)


def test_the_first_half_of_the_rows_is_chosen():
    """Three pairs of one token each, log-probs -1 to -6: the first three rows are chosen."""
    sequences = rows([(1, 1)] * 6)
    models = Given(-torch.arange(1.0, 7.0)[:, None])
    batch = PairBatch(sequences, torch.zeros(6))
    output = step(models, batch, DPOConfig(0.4, "sigmoid", 0.0, 0.0, 0.0))
    assert count(batch) == 3
    close(output.metrics["nll"], [1.0, 2.0, 3.0], EXACT)


def test_metrics_keep_no_graph():
    models, batch, config, _ = batch_of("sigmoid")
    assert models._logprobs is not None
    output = step(Given(models._logprobs.requires_grad_()), batch, config)
    assert output.losses.requires_grad
    plain_numbers(output.metrics)
