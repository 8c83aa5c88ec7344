"""The KTO loss, its reference point, the mismatched pairs, and the step."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.kto import (
    KTOBatch,
    KTOConfig,
    Labelled,
    build,
    count,
    kto_loss,
    mismatched,
    reference_point,
    step,
)
from alignflow.data.collate import collate, take_rows
from alignflow.loops import offline
from alignflow.loops.by_rows import by_rows
from alignflow.loops.update import Means
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.optim import adamw
from alignflow.types import Example, Sequences
from tests.close import EXACT, FLOAT64, close
from tests.tiny import open_base
from tests.toy import CONFIG, Bigram, Given, enough, plain_numbers, random_like, rows, update

# -- the slow loop: written from the paper, on lists of numbers ----------------------------------------------------


def slow_point(pairs: list[float], ref_pairs: list[float]) -> float:
    """max(0, 1/m sum of log pi(y'|x) - log pi_ref(y'|x))."""
    return max(0.0, sum(p - r for p, r in zip(pairs, ref_pairs, strict=True)) / len(pairs))


def slow_losses(
    logps: list[float], ref: list[float], good: list[bool], z0: float, beta: float, up: float, down: float
) -> list[float]:
    """lambda_y - v(x, y), term by term as the paper has it."""
    losses = []
    for p, r, is_good in zip(logps, ref, good, strict=True):
        if is_good:
            losses.append(up - up / (1 + math.exp(-beta * (p - r - z0))))
        else:
            losses.append(down - down / (1 + math.exp(-beta * (z0 - (p - r)))))
    return losses


def slow_slopes(
    logps: list[float], ref: list[float], good: list[bool], z0: float, beta: float, up: float, down: float
) -> list[float]:
    """d L / d log pi with z0 held: -lambda_D beta s(1 - s) of good rows, +lambda_U beta s(1 - s) of bad ones."""
    slopes = []
    for p, r, is_good in zip(logps, ref, good, strict=True):
        s = 1 / (1 + math.exp(-beta * (p - r - z0)))
        slopes.append((-up if is_good else down) * beta * s * (1 - s))
    return slopes


GOOD = [True, False, False, True, True, False]


def numbers(seed: int = 0, size: int = 6) -> list[Tensor]:
    """Return log-probs of rows under policy and reference, then those of mismatched pairs. 4 of (B,)"""
    generator = torch.Generator().manual_seed(seed)
    drawn = list(torch.randn(4, size, generator=generator, dtype=torch.float64) * 4 - 10)
    drawn[2] = drawn[2] + 3  # so that z0 is above 0
    return drawn


def loss_of(
    logps: Tensor, ref: Tensor, z0: Tensor | float, beta: float = 0.3, up: float = 1.0, down: float = 1.0
) -> Tensor:
    point = torch.as_tensor(z0, dtype=logps.dtype)
    weights = {"desirable_weight": up, "undesirable_weight": down}
    return kto_loss(logps, ref, torch.tensor(GOOD[: len(logps)]), point, beta=beta, **weights)


# -- the loss ------------------------------------------------------------------------------------------------------


def test_losses_by_hand():
    """r = -1 + 3 = 2, z0 = 1, beta 1/2: h = 1/2. Good at weight 2: 2 - 2 s(1/2) = 2 / (1 + e^.5).

    Bad at weight 3: 3 - 3 s(-1/2) = 3 / (1 + e^-.5). The two rows share r, so only the label tells them apart.
    """
    logps, ref = torch.tensor([-1.0, -1.0]).double(), torch.tensor([-3.0, -3.0]).double()
    expected = [2 / (1 + math.exp(0.5)), 3 / (1 + math.exp(-0.5))]
    close(loss_of(logps, ref, 1.0, 0.5, 2.0, 3.0), expected, FLOAT64)


@pytest.mark.parametrize("beta", [0.05, 0.7])
@pytest.mark.parametrize(("up", "down"), [(1.0, 1.0), (1.3, 0.4)])
def test_losses_and_slopes_equal_the_loop(beta: float, up: float, down: float):
    logps, ref, pairs, ref_pairs = numbers()
    held = slow_point(pairs.tolist(), ref_pairs.tolist())
    assert held > 0
    losses = loss_of(logps.requires_grad_(), ref, reference_point(pairs, ref_pairs), beta, up, down)
    close(losses, slow_losses(logps.tolist(), ref.tolist(), GOOD, held, beta, up, down), FLOAT64)
    losses.sum().backward()
    close(logps.grad, slow_slopes(logps.tolist(), ref.tolist(), GOOD, held, beta, up, down), FLOAT64)


def test_no_gradient_goes_through_the_reference_point():
    """Neither the mean over pairs nor the loss passes a gradient on."""
    logps, ref, pairs, ref_pairs = numbers()
    assert not reference_point(pairs.requires_grad_(), ref_pairs).requires_grad
    trained = logps.clone().requires_grad_()
    carried = trained.mean() - logps.mean() + 0.7  # worth 0.7
    loss_of(trained, ref, carried, 0.3, 1.3, 0.4).sum().backward()
    close(trained.grad, slow_slopes(logps.tolist(), ref.tolist(), GOOD, 0.7, 0.3, 1.3, 0.4), FLOAT64)


def test_equal_policies_give_half_of_each_weight_and_a_slope_of_a_quarter_of_it():
    """h = 0 and z0 = 0: lambda s(0) = lambda / 2; slope -lambda_D beta / 4 of good rows, +lambda_U beta / 4 of bad."""
    logps, _, pairs, _ = numbers()
    trained = logps.clone().requires_grad_()
    losses = loss_of(trained, logps, reference_point(pairs, pairs), 0.4, 1.0, 3.0)
    close(losses, [0.5 if good else 1.5 for good in GOOD], FLOAT64)
    losses.sum().backward()
    close(trained.grad, [-0.1 if good else 0.3 for good in GOOD], FLOAT64)


def test_the_two_weights_scale_the_two_kinds_of_rows():
    logps, ref, *_ = numbers()
    plain, more = loss_of(logps, ref, 0.7), loss_of(logps, ref, 0.7, up=5.0, down=0.25)
    close(more, plain * torch.tensor([5.0 if good else 0.25 for good in GOOD]), FLOAT64)


def test_a_flipped_thumb_gives_the_rest_of_the_weight():
    """s(h) + s(-h) = 1: the losses of a row with a thumb up and with a thumb down make lambda together."""
    logps, ref, *_ = numbers()
    keys = {"beta": 0.3, "desirable_weight": 2.0, "undesirable_weight": 2.0}
    good, z0 = torch.tensor(GOOD), torch.tensor(0.7)
    close(kto_loss(logps, ref, good, z0, **keys) + kto_loss(logps, ref, ~good, z0, **keys), [2.0] * 6, FLOAT64)


def test_the_loss_passes_gradcheck():
    logps, ref, *_ = numbers()
    assert torch.autograd.gradcheck(lambda x: loss_of(x, ref, 0.7, 0.3, 1.2, 0.6), logps.requires_grad_())


def test_a_sure_policy_keeps_its_digits_and_hopeless_rows_stay_finite():
    """Both rows are right by 100 nats at beta 1/2: e^-50, where 1 - s(50) is 0 in float32. Then both are all wrong."""
    sure = loss_of(torch.tensor([100.0, -100.0]), torch.zeros(2), 0.0, 0.5)
    close(sure / math.exp(-50), [1.0, 1.0])
    logps = torch.tensor([-1e5, 1e5], requires_grad=True)
    lost = loss_of(logps, torch.zeros(2), 0.0, 0.5)
    close(lost, [1.0, 1.0], EXACT)
    lost.sum().backward()
    close(logps.grad, [0.0, 0.0], EXACT)


def test_permuting_the_rows_permutes_the_losses():
    logps, ref, *_ = numbers()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    keys = {"beta": 0.3, "desirable_weight": 2.0, "undesirable_weight": 0.5}
    good, z0 = torch.tensor(GOOD), torch.tensor(0.7)
    moved = kto_loss(logps[order], ref[order], good[order], z0, **keys)
    close(moved, kto_loss(logps, ref, good, z0, **keys)[order], EXACT)


# -- the reference point -------------------------------------------------------------------------------------------


def test_the_reference_point_by_hand():
    """Log-ratios 1, -4, 6: mean 1 (each clamped by itself: 7/3). Log-ratios 1, -4: mean -3/2, so 0."""
    ref = torch.tensor([-5.0, -6.0, -7.0])
    ratios = torch.tensor([1.0, -4.0, 6.0])
    close(reference_point(ref + ratios, ref), 1.0, EXACT)
    close(reference_point((ref + ratios)[:2], ref[:2]), 0.0, EXACT)


def test_the_reference_point_equals_the_loop_and_is_never_negative():
    below = 0
    for seed in range(20):
        _, _, pairs, ref_pairs = numbers(seed)
        pairs = pairs - 3
        found = reference_point(pairs, ref_pairs)
        close(found, slow_point(pairs.tolist(), ref_pairs.tolist()), FLOAT64)
        assert found >= 0
        below += bool((pairs - ref_pairs).mean() < 0)
    assert 0 < below < 20


# -- mismatched pairs ----------------------------------------------------------------------------------------------


def labelled(*texts: tuple[int, int]) -> list[Labelled]:
    """Return rows of a prompt and a response of one token each, all with a thumb up."""
    return [Labelled((prompt,), (response,), True) for prompt, response in texts]


def pairs_of(*texts: tuple[int, int]) -> list[tuple[int, int]]:
    return [(example.prompt[0], example.response[0]) for example in mismatched(labelled(*texts))]


def test_unlike_rows_are_rotated_by_one():
    assert pairs_of((1, 10), (2, 20), (3, 30)) == [(1, 20), (2, 30), (3, 10)]


def test_the_thumbs_have_no_say_in_the_pairs():
    down = [row._replace(desirable=False) for row in labelled((1, 10), (2, 20), (3, 30))]
    assert mismatched(down) == mismatched(labelled((1, 10), (2, 20), (3, 30)))


def test_no_row_gets_its_own_text_while_it_is_not_that_of_more_than_half():
    """10 is at 0, 1 and 3 of six: every rotation of the unsorted rows would keep it in some row."""
    own = (10, 10, 30, 10, 50, 60)
    found = pairs_of(*enumerate(own, start=1))
    assert all(response != mine for (_, response), mine in zip(found, own, strict=True))


def test_any_batch_keeps_as_few_texts_as_can_be_and_each_response_is_given_once():
    """At least 2m - n of the m rows (of n) with a text must keep it; no more rows keep it."""
    chance = random.Random(3)
    for _ in range(300):
        size, kinds = chance.randint(2, 9), chance.choice((2, 4, 30))
        own = [chance.randint(1, kinds) for _ in range(size)]
        found = pairs_of(*enumerate(own, start=100))
        assert [prompt for prompt, _ in found] == list(range(100, 100 + size))
        assert sorted(response for _, response in found) == sorted(own)
        kept = sum(response == mine for (_, response), mine in zip(found, own, strict=True))
        assert kept == max(0, 2 * max(own.count(text) for text in own) - size)


def test_a_prompt_gets_another_prompt_s_response_where_it_can():
    """Two pairs as four adjacent rows: rotated by one, prompts 1 and 2 would get their own other answer."""
    assert pairs_of((1, 10), (1, 11), (2, 20), (2, 21)) == [(1, 20), (1, 21), (2, 10), (2, 11)]


def test_the_only_text_of_a_batch_stays_and_a_batch_of_one_is_refused():
    assert pairs_of((1, 10), (2, 10)) == [(1, 10), (2, 10)]
    with pytest.raises(ValueError, match="at least two rows"):
        mismatched(labelled((1, 10)))


# -- the step ------------------------------------------------------------------------------------------------------

LENGTHS = [(2, 3), (4, 1), (2, 5), (4, 2)]
REF = [-1.0, -2.0, -0.5, 0.25]
THUMBS = [True, False, False, True]
SETTINGS = KTOConfig(beta=0.4, desirable_weight=1.5, undesirable_weight=0.5)


def batch_of() -> tuple[Given, KTOBatch, list[float]]:
    """Return models, a batch with z0 = 0.3, and the sums of its response log-probs, taken by a loop."""
    sequences = rows(LENGTHS)
    noise, mask = random_like(sequences, 1), sequences.response_mask[:, 1:]
    sums = [sum(x for x, m in zip(r, k, strict=True) if m) for r, k in zip(noise.tolist(), mask.tolist(), strict=True)]
    point = torch.full((4,), 0.3, dtype=torch.float64)
    return Given(noise), KTOBatch(sequences, torch.tensor(REF).double(), torch.tensor(THUMBS), point), sums


def test_a_step_sums_response_tokens():
    models, batch, sums = batch_of()
    output = step(models, batch, SETTINGS)
    close(output.losses, slow_losses(sums, REF, THUMBS, 0.3, 0.4, 1.5, 0.5), FLOAT64)
    assert output.mask.shape == output.losses.shape
    assert output.mask.all()
    assert models.temperatures == [1.0]


def test_metrics_are_of_the_rows_of_each_kind():
    models, batch, sums = batch_of()
    metrics = step(models, batch, SETTINGS).metrics
    rewards = [0.4 * (s - r) for s, r in zip(sums, REF, strict=True)]
    close(metrics["rewards/chosen"], [rewards[0], rewards[3]], FLOAT64)
    close(metrics["rewards/rejected"], [rewards[1], rewards[2]], FLOAT64)
    close(metrics["logps/chosen"], [sums[0], sums[3]], FLOAT64)
    close(metrics["logps/rejected"], [sums[1], sums[2]], FLOAT64)
    close(metrics["kl/reference_point"], [0.3] * 4, FLOAT64)


def test_metrics_of_micro_batches_of_one_kind_are_those_of_the_whole_batch():
    models, batch, _ = batch_of()
    assert models._logprobs is not None
    whole, parts = Means(), Means()
    whole.add(step(models, batch, SETTINGS).metrics)
    for part in ([0], [1, 2], [3]):
        longest = max(sum(LENGTHS[row]) for row in part)
        parts.add(step(Given(models._logprobs[part, : longest - 1]), take_rows(batch, part), SETTINGS).metrics)
    assert parts.result().keys() == whole.result().keys()
    for name, value in whole.result().items():
        close(parts.result()[name], value, FLOAT64)


def test_metrics_keep_no_graph():
    models, batch, _ = batch_of()
    assert models._logprobs is not None
    carried = replace(batch, reference_point=batch.reference_point.clone().requires_grad_())
    output = step(Given(models._logprobs.requires_grad_()), carried, SETTINGS)
    assert output.losses.requires_grad
    plain_numbers(output.metrics)


@pytest.mark.parametrize("filling", [math.nan, 1e9])
def test_padding_may_hold_anything_in_a_step(filling: float):
    models, batch, _ = batch_of()
    assert models._logprobs is not None
    dirty, spoilt = models._logprobs.masked_fill(~batch.sequences.response_mask[:, 1:], filling), Given()
    spoilt.logprobs = lambda *_, **__: (dirty, None)  # type: ignore[method-assign]
    close(step(spoilt, batch, SETTINGS).losses, step(models, batch, SETTINGS).losses, EXACT)


def test_it_is_wired_with_its_models_and_settings():
    """Rows are what is counted; real tokens are 5 + 5 + 7 + 6 = 23, of a rectangle of 28."""
    models, batch, _ = batch_of()
    algorithm = build(models, SETTINGS)
    close(algorithm.step(batch).losses, step(models, batch, SETTINGS).losses, EXACT)
    assert algorithm.count(batch) == count(batch) == 4.0
    assert algorithm.tokens(batch) == 23


@pytest.mark.parametrize("parts", [[[0, 1], [2], [3, 4, 5]], [[i] for i in range(6)], [[5, 2], [4, 3, 0, 1]]])
def test_micro_batches_give_the_gradient_of_one_batch(parts: list[list[int]]):
    """A table of logits away from its start, so that z0 is above 0 and each row has a different slope."""
    whole, z0 = _gradient([[0, 1, 2, 3, 4, 5]])
    assert z0 > 0.1
    scale = float(whole.abs().max())
    assert scale > 1e-3
    close(_gradient(parts)[0] / scale, whole / scale)


def _gradient(parts: list[list[int]]) -> tuple[Tensor, float]:
    models, generator = Bigram(), torch.Generator().manual_seed(4)
    with torch.no_grad():
        models.table += 0.3 * torch.randn(12, 12, generator=generator)
        models.table[:, 11] += 1.0  # the end, of which all responses have one
    ids = torch.randint(1, 11, (6, 9), generator=generator).tolist()
    data = [
        Labelled(tuple(r[:n]), (*r[n : n + k], 11), good)
        for r, n, k, good in zip(ids, (2, 4, 1, 3, 2, 5), (2, 0, 5, 1, 1, 3), GOOD, strict=True)
    ]
    sequences, pairs = collate([Example(row.prompt, row.response) for row in data]), collate(mismatched(data))
    z0 = reference_point(_sums(models, "policy", pairs), _sums(models, "reference", pairs))
    batch = KTOBatch(sequences, _sums(models, "reference", sequences), torch.tensor(GOOD), z0.expand(6))
    kept: list[Tensor] = []

    class Keep:
        def step(self, *, factor: float, max_grad_norm: float) -> float:
            assert models.table.grad is not None
            kept.append(models.table.grad.clone())
            return 0.0

        def drop_gradients(self) -> None:
            pass

    cut = [take_rows(batch, part) for part in parts]
    update(cut, [lambda b: step(models, b, SETTINGS)], count, Keep())  # type: ignore[arg-type]
    return kept[0], float(z0)


@torch.no_grad()
def _sums(models: Bigram | SharedBase, role: str, batch: Sequences) -> Tensor:
    return masked_sum(models.logprobs(role, batch)[0], batch.response_mask[:, 1:])


# -- one token, three actions: where it comes to rest --------------------------------------------------------------
#
# Let m_a be lambda_D times the thumbs up of action a less lambda_U times its thumbs down, over n rows. With z0 held,
# the derivative of the mean loss by log pi_a is -(beta / n) m_a s'(h_a), h_a = beta (log pi_a / ref_a - z0); by the
# logit of a it is that, less pi_a times its sum over all actions. A policy is thus at rest where pi_a is proportional
# to m_a s'(h_a). If all m_a are above 0, every action keeps a share: v is bounded and stops pulling. An action with
# m_a below 0 can be at rest at probability 0 alone, whatever share of its thumbs is up.

START = [0.5, 0.3, 0.2]
BETA = 0.5


def follow(thumbs: Sequence[tuple[int, int]], steps: int, up: float = 1.0, down: float = 1.0) -> list[float]:
    """Return where gradient steps end on rows of (ups, downs) of each action; z0 is computed again in each step."""
    rows_of = [
        (action, sign) for action, pair in enumerate(thumbs) for sign in (True, False) for _ in range(pair[not sign])
    ]
    taken, good = torch.tensor([action for action, _ in rows_of]), torch.tensor([sign for _, sign in rows_of])
    ref = torch.tensor(START, dtype=torch.float64).log()
    logits, weights = ref.clone().requires_grad_(), {"desirable_weight": up, "undesirable_weight": down}
    for _ in range(steps):
        logprobs = logits.log_softmax(0)
        z0 = reference_point(logprobs[taken], ref[taken])
        (grad,) = torch.autograd.grad(
            kto_loss(logprobs[taken], ref[taken], good, z0, beta=BETA, **weights).mean(), logits
        )
        with torch.no_grad():
            logits -= 4.0 * grad
    found: list[float] = logits.detach().softmax(0).tolist()
    return found


def bend(policy: Sequence[float], seen: Sequence[float]) -> tuple[list[float], float]:
    """Return s'(h_a) of each action, and z0, where action a makes a share seen_a of the responses."""
    ratios = [math.log(p / r) for p, r in zip(policy, START, strict=True)]
    z0 = max(0.0, sum(w * r for w, r in zip(seen, ratios, strict=True)))
    return [1 / (2 + math.exp(BETA * (r - z0)) + math.exp(-BETA * (r - z0))) for r in ratios], z0


def at_rest(pull: Sequence[float], seen: Sequence[float]) -> list[float]:
    """Solve pi_a = m_a s'(h_a) / sum by putting the right side in again and again."""
    policy = list(START)
    for _ in range(300):
        found = [m * b for m, b in zip(pull, bend(policy, seen)[0], strict=True)]
        policy = [f / sum(found) for f in found]
    return policy


def test_it_comes_to_rest_where_the_pulls_balance():
    """Thumbs (4, 1), (2, 1), (2, 0): m = (3, 1, 2)."""
    close(follow([(4, 1), (2, 1), (2, 0)], 1500), at_rest([3, 1, 2], [0.5, 0.3, 0.2]), 1e-6)


def test_its_rest_depends_on_the_weights_and_on_a_reference_point_above_zero():
    """Thumbs (1, 0), (4, 1), (1, 0) at weights 2 and 1: m = (2, 7, 2). Without z0 the fixed point would differ."""
    pull, seen = [2, 7, 2], [1 / 7, 5 / 7, 1 / 7]
    expected = at_rest(pull, seen)
    assert bend(expected, seen)[1] > 0.1
    close(follow([(1, 0), (4, 1), (1, 0)], 1500, up=2.0), expected, 1e-6)
    assert max(abs(a - b) for a, b in zip(expected, at_rest(pull, [0, 0, 0]), strict=True)) > 1e-3


def test_an_action_of_mostly_thumbs_down_goes_though_some_are_up():
    """Thumbs (4, 1), (1, 2), (2, 0): m = (3, -1, 2). The second action leaves; the others balance at 3 to 2.

    It leaves as 1 / steps^2, since its slope goes with pi^beta; hence the tolerances.
    """
    found = follow([(4, 1), (1, 2), (2, 0)], 4000)
    assert found[1] < 1e-3
    slopes, _ = bend(found, [0.5, 0.3, 0.2])
    close(found[0] / found[2], 3 * slopes[0] / (2 * slopes[2]), 0.02)


def test_thumbs_that_say_nothing_move_nothing():
    """Responses as often as the reference says them, all up or all down: m goes with pi_ref, where it is at rest."""
    close(follow([(5, 0), (3, 0), (2, 0)], 20), START, FLOAT64)
    close(follow([(0, 5), (0, 3), (0, 2)], 1), START, FLOAT64)


def test_weights_against_the_numbers_of_thumbs_cancel_them():
    """One up at weight 3 and three down at weight 1 of the same action: m = 0, at any policy."""
    close(follow([(1, 3), (0, 0), (1, 3)], 20, up=3.0), START, FLOAT64)


# -- it learns -----------------------------------------------------------------------------------------------------


def test_it_learns_from_unpaired_thumbs(tiny: Path):
    """Eight prompts with one answer each, four up and four down: the two kinds part, and the reference stays."""
    models = open_base(tiny)
    models.add("reference")
    models.add("policy", trained=True)
    ids = torch.randint(1, 90, (8, 2, 4), generator=torch.Generator().manual_seed(5)).tolist()
    data = [Labelled(tuple(p), tuple(r), number % 2 == 0) for number, (p, r) in enumerate(ids)]
    sequences, pairs = collate([Example(row.prompt, row.response) for row in data]), collate(mismatched(data))
    thumbs = torch.tensor([row.desirable for row in data])
    ref, ref_pairs = (by_rows(lambda b: _sums(models, "reference", b), s, enough(64)) for s in (sequences, pairs))

    @lru_cache(maxsize=1)
    def point(k: int) -> Tensor:
        return reference_point(by_rows(lambda b: _sums(models, "policy", b), pairs, enough(64)), ref_pairs)

    def batches(k: int, budget: int) -> list[KTOBatch]:
        batch = KTOBatch(sequences, ref, thumbs, point(k).expand(8))
        return [take_rows(batch, part) for part in ([0, 1, 2], [3], [4, 5, 6, 7])]

    before, seen = models.fingerprint("reference"), list[Mapping[str, float]]()
    algorithm, config = build(models, KTOConfig(0.3, 1.0, 1.0)), replace(CONFIG, steps=25, learning_rate=1e-2)
    offline.train(
        batches,
        algorithm,
        adamw(models, {"policy": config.learning_rate}, weight_decay=0.0, kind="adamw"),
        config,
        budget=enough(config.micro_batch_tokens),
        log=lambda step, metrics: seen.append(metrics),
        keep=lambda step, state: None,
    )
    close(seen[0]["loss"], 0.5)
    assert seen[-1]["loss"] < 0.25
    assert seen[-1]["rewards/chosen"] > 0.3 * seen[-1]["kl/reference_point"] > seen[-1]["rewards/rejected"]
    ratios = _sums(models, "policy", sequences) - ref
    assert ratios[thumbs].min() > 0 > ratios[~thumbs].max()
    assert models.fingerprint("reference") == before
