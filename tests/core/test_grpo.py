"""GRPO: the loss, its three normalisations, and the step."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.grpo import GRPOBatch, GRPOConfig, count, grpo_loss, prepare, step, zero_variance
from alignflow.data.collate import take_rows
from tests import reference
from tests.close import EXACT, FLOAT64, close
from tests.toy import Given, random_like, rollouts, rows

CONFIG = GRPOConfig(
    beta=0.04,
    clip_range_low=0.2,
    clip_range_high=0.3,
    group_size=2,
    normalization="dapo",
    std_epsilon=0.01,
    zero_variance="keep",
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
    """All four responses answer the same prompt; still each pair is its own baseline."""
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
    """What is left of the first group's loss is the KL alone."""
    batch, metrics = prepare(EQUAL, draw(1), draw(2), CONFIG)
    close(metrics["zero_variance_fraction"], [1.0, 0.0], EXACT)
    close(metrics["counted_fraction"], [1.0] * 4, EXACT)
    close(batch.advantages[:2], [0.0, 0.0], FLOAT64)
    assert zero_variance(EQUAL, CONFIG).tolist() == [True, False]


@pytest.mark.parametrize("choice", ["drop", "resample"])
@pytest.mark.parametrize("normalization", ["grpo", "dapo", "dr_grpo"])
def test_dropped_groups_leave_the_loss_and_its_denominator(choice: str, normalization: str):
    """As if the second group had been alone."""
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
    """One of two is left in the first group: it has no advantage, and the other leaves the loss."""
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
