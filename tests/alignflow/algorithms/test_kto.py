"""The KTO loss, its reference point and its step."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.kto import KTOBatch, KTOConfig, Labelled, build, count, kto_loss, mismatched, reference_point
from alignflow.data.collate import by_rows, collate, take_rows
from alignflow.loops import offline
from alignflow.ops import masked_sum
from alignflow.optim import MasterAdamW
from alignflow.types import Example, Sequences
from tests.close import EXACT, FLOAT64, close
from tests.tiny import open_base
from tests.toy import CONFIG, Bigram, Given, enough, plain_numbers, random_like, rows, update

KEYS = {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.7}
CONFIG_KTO = KTOConfig(**KEYS)


def numbers(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probs of policy and reference, labels of both kinds, and a reference point. (6,) each"""
    generator = torch.Generator().manual_seed(seed)
    logps, ref_logps = torch.randn(2, size, generator=generator, dtype=torch.float64) * 4 - 10
    return logps, ref_logps, torch.arange(size) % 3 > 0, torch.full((size,), 0.9, dtype=torch.float64)


def slow(
    logps: list[float], ref_logps: list[float], desirable: list[bool], point: float, config: KTOConfig
) -> list[float]:
    """Ethayarajh et al. 2024: the weight of the label less the value, row by row, from the definitions."""
    losses = []
    for logp, ref_logp, good in zip(logps, ref_logps, desirable, strict=True):
        gain = (logp - ref_logp - point) if good else (point - (logp - ref_logp))
        weight = config.desirable_weight if good else config.undesirable_weight
        losses.append(weight - weight / (1.0 + math.exp(-config.beta * gain)))
    return losses


# -- the loss ------------------------------------------------------------------------------------------------------


def test_loss_by_hand():
    """Log-ratios -1 + 4 = 3 (up) and -5 + 2 = -3 (down), z0 = 1, beta 1/2, weights 2 and 3.

    Up: h = (3 - 1) / 2 = 1 and 2 - 2 s(1) = 2 / (1 + e). Down: h = (1 + 3) / 2 = 2 and 3 - 3 s(2) = 3 / (1 + e^2).
    """
    losses = kto_loss(
        torch.tensor([-1.0, -5.0]).double(),
        torch.tensor([-4.0, -2.0]).double(),
        torch.tensor([True, False]),
        torch.ones(2).double(),
        beta=0.5,
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    close(losses, [2 / (1 + math.e), 3 / (1 + math.e**2)], FLOAT64)


@pytest.mark.parametrize("beta", [0.05, 0.7])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.6, 1.7)])
def test_loss_equals_the_loop(beta: float, weights: tuple[float, float]):
    logps, ref_logps, desirable, point = numbers()
    config = KTOConfig(beta, *weights)
    losses = kto_loss(logps, ref_logps, desirable, point, **vars(config))
    close(losses, slow(logps.tolist(), ref_logps.tolist(), desirable.tolist(), 0.9, config), FLOAT64)


def test_a_policy_that_is_its_reference_loses_half_the_weight():
    """r = z0 = 0, and the logistic function of 0 is 1/2."""
    _, ref_logps, desirable, _ = numbers()
    losses = kto_loss(ref_logps, ref_logps, desirable, torch.zeros(6).double(), **KEYS)
    close(losses, [0.35, 0.65, 0.65, 0.35, 0.65, 0.65], FLOAT64)


@pytest.mark.parametrize(("kind", "name"), [(True, "desirable_weight"), (False, "undesirable_weight")])
def test_a_weight_scales_its_kind_alone(kind: bool, name: str):
    logps, ref_logps, desirable, point = numbers()
    plain = kto_loss(logps, ref_logps, desirable, point, **KEYS)
    heavy = kto_loss(logps, ref_logps, desirable, point, **{**KEYS, name: 3 * KEYS[name]})
    close(heavy, torch.where(desirable == kind, 3 * plain, plain), FLOAT64)


def test_loss_passes_gradcheck():
    logps, ref_logps, desirable, point = numbers()
    assert torch.autograd.gradcheck(lambda x: kto_loss(x, ref_logps, desirable, point, **KEYS), logps.requires_grad_())


def test_a_policy_that_is_sure_keeps_its_digits():
    """Up with h = 60: the loss is s(-60) = e^-60 / (1 + e^-60), where 1 - s(60) is 0; and far away it stays finite."""
    up, zero = torch.tensor([True]), torch.zeros(1).double()
    one = {"beta": 1.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    loss = kto_loss(torch.tensor([60.0]).double(), zero, up, zero, **one)
    close(loss * math.exp(60), [1 / (1 + math.exp(-60))], FLOAT64)
    assert kto_loss(torch.tensor([-1e5, 1e5]), torch.zeros(2), up, torch.zeros(2), **one).isfinite().all()


# -- the reference point -------------------------------------------------------------------------------------------


def test_reference_point_by_hand():
    """Log-ratios 2, -1 and 0.5: mean 0.5."""
    found = reference_point(torch.tensor([-1.0, -4.0, -2.0]).double(), torch.tensor([-3.0, -3.0, -2.5]).double())
    close(found, 0.5, FLOAT64)


def test_the_reference_point_is_never_negative():
    """The mean is clamped, not each log-ratio: of 2 and -3 it is 0, of 3 and -2 it is 0.5."""
    ref_logps = torch.zeros(2)
    close(reference_point(torch.tensor([2.0, -3.0]), ref_logps), 0.0, EXACT)
    close(reference_point(torch.tensor([3.0, -2.0]), ref_logps), 0.5, EXACT)


def test_no_gradient_goes_through_the_reference_point():
    weight = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    assert not reference_point(weight * 2, torch.zeros(1).double()).requires_grad
    ref_logps, desirable = torch.zeros(1).double(), torch.tensor([True])
    held = kto_loss(weight * 1, ref_logps, desirable, torch.tensor([0.5]).double(), **KEYS)
    carried = kto_loss(weight * 1, ref_logps, desirable, weight - 0.2, **KEYS)
    for loss in (held, carried):
        (grad,) = torch.autograd.grad(loss.sum(), weight)
        inside = 1 / (1 + math.exp(-0.4 * 0.2))  # d/dx of 1.3 s(-0.4 (x - z0)) at x - z0 = 0.2
        close(grad, [-1.3 * 0.4 * inside * (1 - inside)], FLOAT64)


def labelled(*pairs: tuple[int, int]) -> list[Labelled]:
    """Return rows by the numbers of their prompts and responses."""
    return [Labelled((p,), (r,), desirable=True) for p, r in pairs]


def paired(*pairs: tuple[int, int]) -> list[tuple[int, int]]:
    return [(pair.prompt[0], pair.response[0]) for pair in mismatched(labelled(*pairs))]


def test_each_prompt_gets_the_response_of_the_next_row():
    assert paired((1, 11), (2, 12), (3, 13)) == [(1, 12), (2, 13), (3, 11)]
    assert paired((1, 11), (2, 12)) == [(1, 12), (2, 11)]


def test_rows_that_share_a_prompt_or_a_response_are_turned_until_no_pair_is_a_row():
    """Two rows of prompt 1 stand side by side; so do two rows of response 11."""
    assert paired((1, 11), (1, 12), (2, 13), (2, 14)) == [(1, 13), (1, 14), (2, 11), (2, 12)]
    assert paired((1, 11), (2, 11), (3, 12), (4, 12)) == [(1, 12), (2, 12), (3, 11), (4, 11)]


def test_where_every_turn_leaves_some_row_the_fewest_are_left():
    """Three rows of prompt 1, then two of prompt 2: turned by one, three pairs are rows; turned by two, (1, 13) is."""
    rows_of_two = (1, 11), (1, 12), (1, 13), (2, 14), (2, 15)
    assert paired(*rows_of_two) == [(1, 13), (1, 14), (1, 15), (2, 11), (2, 12)]
    assert paired((1, 11), (1, 12)) == [(1, 12), (1, 11)]  # both are rows, and still not their own


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two rows"):
        paired((1, 11))


# -- the step ------------------------------------------------------------------------------------------------------

LENGTHS = [(2, 3), (4, 1), (2, 5), (4, 2)]
UP = torch.tensor([True, False, False, True])
REF = torch.tensor([-1.0, -2, -3, -4], dtype=torch.float64)


def batch_of() -> tuple[Given, KTOBatch, list[float]]:
    """Return a model that is a table, a batch with z0 = 0.3, and the sum over each row's response tokens."""
    sequences = rows(LENGTHS)
    noise = random_like(sequences, 1)
    mask = sequences.response_mask[:, 1:]
    sums = [
        sum(x for x, m in zip(row, kept, strict=True) if m)
        for row, kept in zip(noise.tolist(), mask.tolist(), strict=True)
    ]
    return Given(noise), KTOBatch(sequences, REF, UP, torch.full((4,), 0.3, dtype=torch.float64)), sums


def test_a_step_sums_response_tokens():
    models, batch, sums = batch_of()
    algorithm = build(models, CONFIG_KTO)
    output = algorithm.step(batch)
    close(output.losses, slow(sums, REF.tolist(), UP.tolist(), 0.3, CONFIG_KTO), FLOAT64)
    assert output.mask.all()
    assert output.mask.shape == output.losses.shape
    assert algorithm.count(batch) == 4
    assert algorithm.tokens(batch) == sum(p + r for p, r in LENGTHS)


def test_metrics_are_of_each_kind_of_row():
    models, batch, sums = batch_of()
    metrics = build(models, CONFIG_KTO).step(batch).metrics
    rewards = [0.4 * (mine - ref) for mine, ref in zip(sums, REF.tolist(), strict=True)]
    close(metrics["rewards/chosen"], [rewards[0], rewards[3]], FLOAT64)
    close(metrics["rewards/rejected"], [rewards[1], rewards[2]], FLOAT64)
    close(metrics["logps/chosen"], [sums[0], sums[3]], FLOAT64)
    close(metrics["logps/rejected"], [sums[1], sums[2]], FLOAT64)
    close(metrics["kl/reference_point"], [0.3] * 4, EXACT)


def test_metrics_keep_no_graph():
    models, batch, _ = batch_of()
    assert models._logprobs is not None
    output = build(Given(models._logprobs.requires_grad_()), CONFIG_KTO).step(batch)
    assert output.losses.requires_grad
    plain_numbers(output.metrics)


@pytest.mark.parametrize("what", [math.nan, 1e9])
def test_padding_may_hold_anything_in_a_step(what: float):
    models, batch, _ = batch_of()
    assert models._logprobs is not None
    dirty = models._logprobs.masked_fill(~batch.sequences.response_mask[:, 1:], what)
    spoilt = Given(dirty)
    spoilt.logprobs = lambda *_, **__: (dirty, None)  # type: ignore[method-assign]
    close(build(spoilt, CONFIG_KTO).step(batch).losses, build(models, CONFIG_KTO).step(batch).losses, EXACT)


ROWS = [
    Labelled((1, 2), (3, 4, 11), desirable=True),
    Labelled((5,), (6, 11), desirable=False),
    Labelled((7, 1, 2), (8, 9, 10, 11), desirable=False),
    Labelled((2, 4), (1, 5, 11), desirable=True),
    Labelled((9,), (11,), desirable=False),
]


def summed(models: Bigram, role: str, sequences: Sequences) -> Tensor:
    return masked_sum(models.logprobs(role, sequences)[0], sequences.response_mask[:, 1:]).detach()


def after(parts: list[list[int]]) -> tuple[Tensor, dict[str, float]]:
    """Return the weights and metrics after one optimiser step from some micro-batches of the five rows."""
    models = Bigram()
    with torch.no_grad():  # away from the reference, to where all responses end sooner: z0 is above 0
        models.table[:, 11] += 1.0
    pairs = collate(mismatched(ROWS))
    point = reference_point(summed(models, "policy", pairs), summed(models, "reference", pairs))
    assert point > 0.1
    sequences = collate([Example(row.prompt, row.response) for row in ROWS])
    whole = KTOBatch(
        sequences,
        summed(models, "reference", sequences),
        torch.tensor([row.desirable for row in ROWS]),
        point.expand(len(ROWS)),
    )
    algorithm = build(models, CONFIG_KTO)
    optimizer = MasterAdamW([([models.table], 0.1)], 0.0, kind="adamw")
    found = update([take_rows(whole, part) for part in parts], [algorithm.step], algorithm.count, optimizer)
    return models.table.detach(), found


@pytest.mark.parametrize("parts", [[[0, 1], [2], [3, 4]], [[0, 3], [1, 2, 4]], [[i] for i in range(5)]])
def test_micro_batches_give_the_step_of_one_batch_even_of_one_kind_each(parts: list[list[int]]):
    (table, metrics), (expected, whole) = after(parts), after([[0, 1, 2, 3, 4]])
    close(table, expected, 1e-6)
    assert metrics.keys() == whole.keys()
    close([metrics[key] for key in whole], list(whole.values()))


# -- where it ends -------------------------------------------------------------------------------------------------


def test_thumbs_have_the_fixed_point_that_their_shares_define():
    """One prompt, one token, three actions that are shown equally often; action a has thumbs up in a share d_a.

    The expected loss is a constant less (1/3) sum_a g_a s(h_a), with g_a = L_D d_a - L_U (1 - d_a) and
    h_a = beta (log pi_a / ref_a - z0). z0 is held, so along the logits its gradient vanishes where
    g_a s'(h_a) = C pi_a for all a. Chosen the other way round: for pi = (.5, .3, .2) against (.7, .2, .1), all nine
    mismatched pairs give z0 = mean_a log pi_a / ref_a = .254; g_a = .4 pi_a / s'(h_a) then gives shares between 0 and
    1. For a held z0 the loss is convex in pi, since beta < 1 and g > 0: gradient steps from the reference end there.
    """
    goal, ref = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.7, 0.2, 0.1]).double()
    beta, up, down = 0.5, 1.0, 0.5
    ratios = [math.log(5 / 7), math.log(3 / 2), math.log(2)]
    point = sum(ratios) / 3
    close(point, 0.254, 1e-3)
    inside = [1 / (1 + math.exp(-beta * (r - point))) for r in ratios]
    g = [0.4 * p / (s * (1 - s)) for p, s in zip((0.5, 0.3, 0.2), inside, strict=True)]
    share = torch.tensor([(x + down) / (up + down) for x in g]).double()
    assert bool(((share > 0) & (share < 1)).all())

    logits = ref.log().clone().requires_grad_()
    for _ in range(4000):
        logps = logits.log_softmax(0)
        z0 = reference_point(logps.repeat(3), ref.log().repeat(3))
        losses = [
            kto_loss(
                logps,
                ref.log(),
                torch.full((3,), good),
                z0.expand(3),
                beta=beta,
                desirable_weight=up,
                undesirable_weight=down,
            )
            for good in (True, False)
        ]
        (grad,) = torch.autograd.grad((share * losses[0] + (1 - share) * losses[1]).sum() / 3, logits)
        with torch.no_grad():
            logits -= 3.0 * grad
    close(logits.detach().softmax(0), goal, 1e-6)


def test_it_learns_from_eight_unpaired_labels(tiny: Path):
    """The responses with a thumb up rise above the reference, those with a thumb down fall below it."""
    ids = torch.randint(1, 90, (8, 2, 4), generator=torch.Generator().manual_seed(5)).tolist()
    data = [Labelled(tuple(p), tuple(r), desirable=i % 2 == 0) for i, (p, r) in enumerate(ids)]
    models = open_base(tiny)
    models.add("reference")
    models.add("policy", trained=True)

    def logps(role: str, examples: list[Example]) -> Tensor:
        return by_rows(
            lambda b: masked_sum(models.logprobs(role, b)[0], b.response_mask[:, 1:]), collate(examples), enough(64)
        )

    own, pairs = [Example(row.prompt, row.response) for row in data], mismatched(data)
    ref, ref_pairs = logps("reference", own), logps("reference", pairs)
    labels, seen = torch.tensor([row.desirable for row in data]), list[Mapping[str, float]]()

    def batches(step: int, budget: int) -> list[KTOBatch]:
        point = reference_point(logps("policy", pairs), ref_pairs)
        return [KTOBatch(collate(own), ref, labels, point.expand(8))]

    config = replace(CONFIG, steps=25, learning_rate=1e-2, weight_decay=0.0)
    algorithm, before = build(models, KTOConfig(0.3, 1.0, 1.0)), models.fingerprint("reference")
    offline.train(
        batches,
        algorithm.step,
        algorithm.count,
        algorithm.tokens,
        MasterAdamW([(models.parameters("policy"), config.learning_rate)], 0.0, kind="adamw"),
        config,
        log=lambda step, metrics: seen.append(metrics),
        announce=pytest.fail,
        keep=lambda step, state: None,
    )
    close(seen[0]["loss"], 0.5)
    assert seen[-1]["loss"] < 0.25
    gains = logps("policy", own) - ref
    assert bool((gains[labels] > 0).all())
    assert bool((gains[~labels] < 0).all())
    assert all(metrics["kl/reference_point"] >= 0 for metrics in seen)
    assert count(batches(0, 0)[0]) == 8
    assert models.fingerprint("reference") == before
