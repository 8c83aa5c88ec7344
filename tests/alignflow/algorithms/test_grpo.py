"""GRPO: the loss, its three normalisations, and the step."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.grpo import GRPOBatch, GRPOConfig, build, count, grpo_loss, prepare, step, zero_variance
from alignflow.data.collate import take_rows
from alignflow.loops.by_rows import RowPasses
from alignflow.memory import Budget
from alignflow.optim import MasterAdamW
from alignflow.types import SamplingConfig
from tests import reference
from tests.close import EXACT, FLOAT64, close
from tests.tiny import four_roles, some_rows
from tests.toy import Given, Uncertain, plain_numbers, random_like, rollouts, rows, update

CONFIG = GRPOConfig(
    beta=0.04,
    clip_range_low=0.2,
    clip_range_high=0.3,
    group_size=2,
    normalization="dapo",
    std_epsilon=0.01,
    zero_variance="keep",
    resample_limit=1,
    mask_truncated=False,
)
BATCH = rows([(2, 3), (2, 1), (4, 6), (4, 2)])  # two prompts, two answers each
MASK = BATCH.response_mask[:, 1:]
SCORES = torch.tensor([[1.0, -1], [0.2, 0.5]], dtype=torch.float64)
ROLLOUTS = rollouts(BATCH, SCORES.flatten())
LONGEST = 8


def draw(seed: int) -> Tensor:
    return random_like(BATCH, seed)


def prepared(normalization: str = "dapo") -> tuple[GRPOBatch, GRPOConfig]:
    config = replace(CONFIG, normalization=normalization)
    return prepare(ROLLOUTS, draw(1), draw(2), config)[0], config


def reduced(models: Given, batch: GRPOBatch, config: GRPOConfig) -> Tensor:
    output = step(models, batch, config, temperature=0.9)
    total = torch.where(output.mask, output.losses, 0.0).sum()
    return total / count(batch, config, max_response_length=LONGEST)


def test_loss_by_hand():
    """Ratio 2 clips above at 1.3 for A = 1 and not at all for A = -1; beta 0.5 on k3 of log-ratio 0 adds 0.

    With reference log 2 below: delta = -log 2 - ... is written out: exp(d) - d - 1 at d = -log 2 is log 2 - 1/2.
    """
    new, old = torch.full((2, 1), math.log(2.0), dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    keys = {"clip_range_low": 0.2, "clip_range_high": 0.3}
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    close(grpo_loss(new, old, new, signs, beta=0.5, **keys), [[-1.3], [2.0]], FLOAT64)
    added = 0.5 * (math.log(2) - 0.5)
    close(grpo_loss(new, old, old, signs, beta=0.5, **keys), [[-1.3 + added], [2.0 + added]], FLOAT64)


@pytest.mark.parametrize("normalization", ["grpo", "dapo", "dr_grpo"])
def test_the_reduced_loss_equals_the_loop(normalization: str):
    batch, config = prepared(normalization)
    new = draw(3)
    scale = normalization != "dr_grpo"
    advantages = [a for row in SCORES.tolist() for a in reference.group_advantages(row, 0.01, scale)]
    close(batch.advantages, advantages, FLOAT64)
    expected = reference.grpo(
        *(x.tolist() for x in (new, draw(1), draw(2))),
        advantages,
        MASK.tolist(),
        0.04,
        0.2,
        0.3,
        normalization,
        LONGEST,
    )
    close(reduced(Given(new), batch, config), expected, FLOAT64)


@pytest.mark.parametrize("normalization", ["grpo", "dapo", "dr_grpo"])
def test_parts_add_up_to_the_whole(normalization: str):
    """Sum over single rows of loss times share, divided by the common denominator."""
    batch, config = prepared(normalization)
    new, total, shares = draw(3), 0.0, 0.0
    for row in range(4):
        part = take_rows(batch, [row])
        cut = Given(new[[row], : part.old_logprobs.shape[1]])
        output = step(cut, part, config, temperature=1.0)
        total += float(torch.where(output.mask, output.losses, 0.0).sum())
        shares += count(part, config, max_response_length=LONGEST)
    close(total / shares, reduced(Given(new), batch, config), FLOAT64)


def test_the_first_update_has_ratio_one():
    """Ratio 1 and no KL term: the mean over all tokens of minus the advantage."""
    batch, config = prepared()
    output = step(Given(batch.old_logprobs), batch, replace(config, beta=0.0), temperature=1.0)
    close(output.losses[MASK], -batch.advantages[:, None].expand_as(MASK)[MASK], EXACT)
    assert output.metrics["clip_fraction"].eq(0).all()
    assert output.metrics["kl/approx"].eq(0).all()


def test_a_prompt_that_comes_twice_makes_two_groups():
    """All four responses answer the same prompt, but each pair has its own baseline."""
    same = rows([(2, 3), (2, 3), (2, 3), (2, 3)])
    zeros = torch.zeros(4, 4)
    batch, _ = prepare(rollouts(same, SCORES.flatten()), zeros, zeros, CONFIG)
    close(
        batch.advantages, [a for row in SCORES.tolist() for a in reference.group_advantages(row, 0.01, True)], FLOAT64
    )


def test_a_constant_added_to_the_scores_changes_nothing():
    there, here = (
        prepare(rollouts(BATCH, SCORES.flatten() + c), draw(1), draw(2), CONFIG)[0].advantages for c in (0.0, 7.0)
    )
    close(here, there, FLOAT64)


EQUAL = rollouts(BATCH, torch.tensor([0.3, 0.3, 0.0, 1.0], dtype=torch.float64))  # the first group is alike


def test_groups_of_equal_scores_are_counted_and_push_nowhere():
    """The first group's loss consists of the KL only."""
    batch, metrics = prepare(EQUAL, draw(1), draw(2), CONFIG)
    close(metrics["zero_variance_fraction"], [1.0, 0.0], EXACT)
    close(metrics["counted_fraction"], [1.0] * 4, EXACT)
    close(batch.advantages[:2], [0.0, 0.0], FLOAT64)
    assert zero_variance(EQUAL, CONFIG).tolist() == [True, False]


@pytest.mark.parametrize("choice", ["drop", "resample"])
@pytest.mark.parametrize("normalization", ["grpo", "dapo", "dr_grpo"])
def test_dropped_groups_leave_the_loss_and_its_denominator(choice: str, normalization: str):
    """The result is that of the second group alone."""
    config = replace(CONFIG, zero_variance=choice, normalization=normalization)
    batch, metrics = prepare(EQUAL, draw(1), draw(2), config)
    close(metrics["counted_fraction"], [0.0, 0.0, 1.0, 1.0], EXACT)
    alone = prepare(rollouts(take_rows(BATCH, [2, 3]), EQUAL.scores[2:]), draw(1)[2:], draw(2)[2:], config)[0]
    close(reduced(Given(draw(3)), batch, config), reduced(Given(draw(3)[2:]), alone, config), FLOAT64)
    kept = reduced(Given(draw(3)), prepare(EQUAL, draw(1), draw(2), replace(config, zero_variance="keep"))[0], config)
    assert abs(float(kept - reduced(Given(draw(3)), batch, config))) > 1e-3


def test_cut_off_responses_keep_their_say_in_the_group_and_leave_the_loss():
    cut = replace(ROLLOUTS, truncated=torch.tensor([False, True, False, False]))
    whole = prepare(cut, draw(1), draw(2), CONFIG)[0]
    masked, metrics = prepare(cut, draw(1), draw(2), replace(CONFIG, mask_truncated=True))
    close(masked.advantages, whole.advantages, EXACT)
    close(metrics["counted_fraction"], [1.0, 0.0, 1.0, 1.0], EXACT)
    expected = reduced(Given(draw(3)[[0, 2, 3]]), take_rows(whole, [0, 2, 3]), CONFIG)
    close(reduced(Given(draw(3)), masked, CONFIG), expected, FLOAT64)


def test_responses_without_a_score_leave_group_and_loss():
    """The first group keeps one of two responses: its advantage is 0, and the other is not in the loss."""
    given = replace(ROLLOUTS, scored=torch.tensor([True, False, True, True]))
    given = replace(given, scores=given.scores.masked_fill(~given.scored, math.nan))
    batch, metrics = prepare(given, draw(1), draw(2), CONFIG)
    close(batch.advantages[:2], [0.0, 0.0], EXACT)
    close(metrics["counted_fraction"], [1.0, 0.0, 1.0, 1.0], EXACT)
    close(metrics["reward/mean"], given.scores[given.scored], EXACT)
    assert reduced(Given(draw(3)), batch, CONFIG).isfinite()


def test_without_beta_the_reference_is_of_no_effect():
    batch, config = prepared()
    config = replace(config, beta=0.0)
    other = replace(batch, ref_logprobs=batch.ref_logprobs - 30)
    close(reduced(Given(draw(3)), other, config), reduced(Given(draw(3)), batch, config), EXACT)


def test_loss_passes_gradcheck_and_padding_may_hold_anything():
    batch, config = prepared()
    new = draw(3).requires_grad_()
    keys = {"beta": 0.1, "clip_range_low": 0.2, "clip_range_high": 0.3}
    assert torch.autograd.gradcheck(lambda x: grpo_loss(x, draw(1), draw(2), batch.advantages, **keys), (new,))
    dirty = replace(
        batch,
        old_logprobs=batch.old_logprobs.masked_fill(~MASK, math.nan),
        ref_logprobs=batch.ref_logprobs.masked_fill(~MASK, 1e9),
    )
    leaf = draw(3).requires_grad_()
    loss = reduced(Given(leaf), dirty, config)
    close(loss, reduced(Given(draw(3)), batch, config), EXACT)
    loss.backward()
    assert leaf.grad is not None
    assert leaf.grad[MASK].isfinite().all()


def test_clip_higher_counts_each_side_by_its_own_range():
    """Ratios 1.25 and 0.75 with ranges 0.2 below and 0.3 above: only the second is outside."""
    batch, config = prepared()
    change = torch.where(torch.arange(4)[:, None] % 2 == 0, math.log(1.25), math.log(0.75))
    metrics = step(Given(batch.old_logprobs + change), batch, config, temperature=1.0).metrics
    expected = (torch.arange(4) % 2).float()[:, None].expand_as(MASK)[MASK]
    close(metrics["clip_fraction"], expected, EXACT)


def test_log_ratios_are_held_within_twenty():
    """Beyond, the ratio is e^20 (unclipped where A < 0) or e^-20 (unclipped where A > 0)."""
    new, old = torch.tensor([[30.0], [-30.0]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    found = grpo_loss(new, old, new, signs, beta=0.0, clip_range_low=0.2, clip_range_high=0.3)
    close(found[0], [math.exp(20)], FLOAT64)
    close(found[1] * 1e9, [-math.exp(-20) * 1e9], FLOAT64)


def test_a_deviation_of_exactly_epsilon_is_not_called_zero():
    """Scores 2, 0, 0, 0 as one group of four: squares 2.25 + 3 * 0.25 = 3, so the deviation is 1."""
    config = replace(CONFIG, group_size=4, std_epsilon=1.0)
    given = rollouts(BATCH, torch.tensor([2.0, 0, 0, 0], dtype=torch.float64))
    assert zero_variance(given, config).tolist() == [False]
    close(prepare(given, draw(1), draw(2), config)[1]["zero_variance_fraction"], [0.0], EXACT)
    wider = replace(config, std_epsilon=1.5)
    assert zero_variance(given, wider).tolist() == [True]


def test_the_preparation_logs_the_kl_to_the_reference_and_the_deviations():
    """KL of a response is the sum of log pi - log pi_ref; deviations sqrt(2) and 0.3 / sqrt(2)."""
    metrics = prepare(ROLLOUTS, draw(1), draw(2), CONFIG)[1]
    expected = [sum(a) - sum(b) for a, b in zip(draw(1).tolist(), draw(2).tolist(), strict=True)]
    close(metrics["kl/reference"], expected, FLOAT64)
    close(metrics["group_std"], [math.sqrt(2), 0.3 / math.sqrt(2)], FLOAT64)


def test_shares_of_the_denominator_by_hand():
    """Responses of 1 and 3 tokens after one token of prompt: 4 tokens, 2 responses, 2 times the longest allowed 8."""
    batch, config = prepared()
    few = replace(batch, sequences=rows([(1, 1), (1, 3)]))
    shares = {"dapo": 4.0, "grpo": 2.0, "dr_grpo": 16.0}
    for name, share in shares.items():
        assert count(few, replace(config, normalization=name), max_response_length=LONGEST) == share


def test_a_response_that_counts_for_nothing_has_finite_losses():
    batch, config = prepared("grpo")
    mute = replace(batch, sequences=BATCH.counting(torch.tensor([True, False, True, True])))
    assert step(Given(draw(3)), mute, config, temperature=1.0).losses.isfinite().all()


def test_a_step_logs_what_it_saw_at_its_temperature_and_keeps_no_graph():
    """``Uncertain`` answers entropy 2 at every token; the KL to the sampling policy is its own k3."""
    batch, config = prepared()
    models = Uncertain((batch.old_logprobs + draw(9)).requires_grad_())
    output = step(models, batch, config, temperature=0.9)
    assert models.temperatures == [0.9]
    close(output.metrics["entropy"], [2.0] * 12, EXACT)
    close(output.metrics["kl/approx"], [math.exp(d) - d - 1 for d in draw(9)[MASK].tolist()], 1e-6)
    assert output.losses.requires_grad
    plain_numbers(output.metrics)
    plain_numbers(prepare(ROLLOUTS, draw(1), draw(2), CONFIG)[1])


def test_only_what_passes_a_range_counts_as_clipped():
    """Ratio 1 with ranges of 0 is on both bounds; 1.2 and 0.9 are inside 0.8 to 1.3, 1.5 and 0.5 are not."""
    batch, config = prepared()
    tight = replace(config, clip_range_low=0.0, clip_range_high=0.0)
    cases = ((1.0, tight, 0.0), (1.2, config, 0.0), (0.9, config, 0.0), (1.5, config, 1.0), (0.5, config, 1.0))
    for ratio, keys, expected in cases:
        models = Given(batch.old_logprobs + math.log(ratio))
        close(step(models, batch, keys, temperature=1.0).metrics["clip_fraction"], [expected] * 12, EXACT)


@pytest.mark.parametrize("changes", [{"zero_variance": "drop"}, {"mask_truncated": True}])
def test_what_has_no_score_stays_out_whatever_else_is_left_out(changes: dict[str, Any]):
    """One group of four unlike scores of which the second is missing; nothing is cut off."""
    given = rollouts(BATCH, torch.tensor([2.0, 0, 1, 0], dtype=torch.float64))
    given = replace(given, scored=torch.tensor([True, False, True, True]))
    metrics = prepare(given, draw(1), draw(2), replace(CONFIG, group_size=4, **changes))[1]
    close(metrics["counted_fraction"], [1.0, 0.0, 1.0, 1.0], EXACT)


def test_importance_weights_scale_the_policy_term_alone():
    """The sampler gave every token e times less than training: weights e, cut at 2; no KL is scaled."""
    config, new = replace(CONFIG, beta=0.5), draw(3)
    sampled = replace(ROLLOUTS, sampled_logprobs=torch.where(MASK, draw(1) - 1.0, 0.0))
    plain, weighted, alike = (
        step(Given(new), prepare(given, draw(1), draw(2), config)[0], config, temperature=0.9, importance_cap=cap)
        for given, cap in ((sampled, None), (sampled, 2.0), (replace(ROLLOUTS, sampled_logprobs=draw(1)), 2.0))
    )
    kl = 0.5 * (torch.exp(draw(2) - new) - (draw(2) - new) - 1)
    close((weighted.losses - kl)[MASK], 2 * (plain.losses - kl)[MASK], FLOAT64)
    close(alike.losses[MASK], plain.losses[MASK], FLOAT64)
    close(weighted.metrics["importance/mean"], [2.0] * 12, FLOAT64)
    close(weighted.metrics["importance/clipped_fraction"], [1.0] * 12, FLOAT64)
    assert "importance/mean" not in plain.metrics


@pytest.mark.parametrize("cap", [None, 1.05])
def test_a_single_update_does_the_same_without_a_forward_for_the_old_log_probs(tiny: Path, cap: float | None):
    """Weights and all metrics, in micro-batches of two rows."""
    sequences = some_rows()
    noise = 0.2 * torch.randn(sequences.response_mask[:, 1:].shape, generator=torch.Generator().manual_seed(5))
    found: list[tuple[list[Tensor], dict[str, float]]] = []
    for asked in (True, False):
        models = four_roles(tiny)
        old, ref = (models.logprobs(role, sequences, 0.9)[0].detach() for role in ("policy", "reference"))
        given = replace(
            rollouts(sequences, SCORES.flatten().float()),
            sampled_logprobs=old + noise * sequences.response_mask[:, 1:],
        )
        config = replace(CONFIG, beta=0.5)
        batch, metrics = prepare(given, old if asked else None, ref, config)
        assert ("kl/reference" in metrics) == asked
        before = {"kl/reference": float(metrics["kl/reference"].mean())} if asked else {}
        done = update(
            [take_rows(batch, [0, 2]), take_rows(batch, [1, 3])],
            [partial(step, models, config=config, temperature=0.9, importance_cap=cap)],
            partial(count, config=config, max_response_length=LONGEST),
            MasterAdamW([(models.parameters("policy"), 1e-2)], 0.0, kind="adamw"),
            max_grad_norm=1.0,
        )
        found.append((models.parameters("policy"), {**done, **before}))
    (weights, told), (others, other_told) = found
    for mine, expected in zip(others, weights, strict=True):
        close(mine, expected)
    assert other_told.keys() == told.keys()
    assert abs(told["kl/reference"]) > 0.1
    assert other_told["kl/approx"] == other_told["clip_fraction"] == 0
    close([other_told[name] for name in told], list(told.values()))


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(
    ("left_out", "changes"),
    [
        ({}, {}),
        ({"truncated": torch.tensor([False, True, False, False])}, {"mask_truncated": True}),
        ({"scored": torch.tensor([False, True, True, True])}, {}),
        ({"scores": torch.tensor([0.5, 0.5, 1.0, 2.0])}, {"zero_variance": "drop"}),
    ],
)
def test_the_kl_to_the_reference_is_over_all_responses_however_many_updates_there_are(
    tiny: Path, several: bool, left_out: dict[str, Tensor], changes: dict[str, Any]
):
    models, sequences = four_roles(tiny), some_rows()
    with torch.no_grad():
        old, ref = (models.logprobs(role, sequences, 0.9)[0] for role in ("policy", "reference"))
    given = replace(rollouts(sequences, SCORES.flatten().float()), **left_out)
    algorithm = build(
        models,
        RowPasses(models, 0.9, Budget(512, print)),
        replace(CONFIG, **changes),
        SamplingConfig(0.9, None, LONGEST),
    )
    batch, metrics, _ = algorithm.prepare(given, {}, several)
    counted = batch.sequences.response_mask.any(1).nonzero()[:, 0].tolist()
    assert (len(counted) == 4) == (not left_out)
    found = metrics if "kl/reference" in metrics else algorithm.steps[0](take_rows(batch, counted)).metrics
    close(found["kl/reference"].mean(), (old - ref).sum(1).mean())
