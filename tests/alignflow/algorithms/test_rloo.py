"""RLOO: the leave-one-out baseline, the loss at both levels, the preparation, the step, and where they lead."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from alignflow.algorithms.rloo import (
    RLOOBatch,
    RLOOConfig,
    build,
    count,
    leave_one_out,
    prepare,
    rewards_to_go,
    rloo_loss,
    step,
)
from alignflow.data.collate import collate, take_rows
from alignflow.optim import MasterAdamW
from alignflow.types import Example, Rollouts, SamplingConfig, Sequences
from tests.close import EXACT, FLOAT64, close
from tests.toy import Bigram, Given, Uncertain, plain_numbers, random_like, rollouts, rows, update

CONFIG = RLOOConfig(
    kl_coef=0.1, kl_estimator="k1", clip_range=0.2, group_size=3, level="sequence", mask_truncated=False
)
BATCH = rows([(2, 3), (2, 1), (2, 4), (4, 6), (4, 2), (4, 5)])  # two prompts, three responses each
MASK = BATCH.response_mask[:, 1:]
SCORES = torch.tensor([1.0, -1, 0.4, 0.2, 0.5, 3], dtype=torch.float64)
ROLLOUTS = rollouts(BATCH, SCORES)
both_levels = pytest.mark.parametrize("level", ["sequence", "token"])


def draw(seed: int, scale: float = 0.3) -> Tensor:
    return random_like(BATCH, seed, scale)


def prepared(config: RLOOConfig, given: Rollouts = ROLLOUTS) -> RLOOBatch:
    return prepare(given, draw(1), draw(2), config)[0]


def reduced(new: Tensor, batch: RLOOBatch, config: RLOOConfig) -> Tensor:
    output = step(Given(new), batch, config, temperature=0.9)
    return torch.where(output.mask, output.losses, 0.0).sum() / count(batch, config)


# -- an independent oracle: loops over lists in float64 --------------------------------------------------------------


def k1(new: float, ref: float) -> float:
    return new - ref


def k3(new: float, ref: float) -> float:
    return math.exp(ref - new) - (ref - new) - 1


def loop_advantages(config: RLOOConfig, scores: list[float | None]) -> list[list[float]]:
    """Return the advantages of each response's tokens; at the level of sequences one."""
    penalty = {"k1": k1, "k3": k3}[config.kl_estimator]
    costs = [
        [config.kl_coef * penalty(p, r) for p, r, m in zip(*row, strict=True) if m]
        for row in zip(draw(1).tolist(), draw(2).tolist(), MASK.tolist(), strict=True)
    ]
    result = []
    for i, (score, mine) in enumerate(zip(scores, costs, strict=True)):
        first = i - i % config.group_size
        group = [j for j in range(first, first + config.group_size) if j != i and scores[j] is not None]
        others = [(scores[j] or 0.0) - sum(costs[j]) for j in group]
        starts = [0] if config.level == "sequence" else range(len(mine))
        if score is None or not others:
            result.append([0.0 for _ in starts])
        else:
            result.append([score - sum(mine[t:]) - sum(others) / len(others) for t in starts])
    return result


def loop_loss(config: RLOOConfig, new: Tensor, advantages: list[list[float]], counted: list[bool]) -> float:
    losses = []
    for row, mine, counts in zip(
        zip(new.tolist(), draw(1).tolist(), MASK.tolist(), strict=True), advantages, counted, strict=True
    ):
        if not counts:
            continue
        changes = [p - o for p, o, m in zip(*row, strict=True) if m]
        if config.level == "sequence":
            changes = [sum(changes)]
        for change, advantage in zip(changes, mine, strict=True):
            ratio = math.exp(change)
            kept = max(1 - config.clip_range, min(1 + config.clip_range, ratio))
            losses.append(-min(ratio * advantage, kept * advantage))
    return sum(losses) / len(losses)


def shown(batch: RLOOBatch) -> list[list[float]]:
    """Return the advantages in the form of the oracle."""
    if batch.advantages.dim() == 1:
        return [[a] for a in batch.advantages.tolist()]
    return [row[mask].tolist() for row, mask in zip(batch.advantages, MASK, strict=True)]


def same(mine: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(row) for row in mine] == [len(row) for row in expected]
    close([a for row in mine for a in row], [a for row in expected for a in row], FLOAT64)


@both_levels
@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("group_size", [2, 3, 6])
def test_advantages_and_loss_equal_the_loops(level: str, estimator: str, group_size: int):
    config = replace(CONFIG, level=level, kl_estimator=estimator, group_size=group_size)
    batch = prepared(config)
    expected = loop_advantages(config, SCORES.tolist())
    same(shown(batch), expected)
    assert batch.advantages.shape == ((6,) if level == "sequence" else MASK.shape)
    new = draw(1) + draw(3, 0.2)
    close(reduced(new, batch, config), loop_loss(config, new, expected, [True] * 6), FLOAT64)


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_the_baseline_by_hand():
    """Rewards 1, 2, 6: the others' means are (2+6)/2, (1+6)/2, (1+2)/2. Without the second: 6, none, 1.

    With one score alone, and with none, there is no baseline.
    """
    rewards = torch.tensor([[1.0, 2, 6], [1, math.nan, 6], [math.nan, 2, math.nan], [math.nan] * 3])
    mask = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False] * 3])
    baselines, paired = leave_one_out(rewards, mask)
    assert paired.tolist() == [[True] * 3, [True, False, True], [False] * 3, [False] * 3]
    close(baselines[paired], [4.0, 3.5, 1.5, 6.0, 1.0], EXACT)
    assert baselines.isfinite().all()


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match=r"^a group needs at least 2 responses$"):
        leave_one_out(torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool))


def test_rewards_to_go_by_hand():
    """Score 10, penalties 1, 2, 4 at the tokens 1 to 3 of five: 10 - 7, 10 - 6, 10 - 4; the rest is no response."""
    penalties = torch.tensor([[math.nan, 1.0, 2, 4, 1e9], [3, math.nan, math.nan, math.nan, math.nan]])
    mask = torch.tensor([[False, True, True, True, False], [True, False, False, False, False]])
    found = rewards_to_go(torch.tensor([10.0, 5]), penalties, mask)
    close(found, [[0.0, 3, 4, 6, 0], [2, 0, 0, 0, 0]], EXACT)


def test_loss_by_hand():
    """Clip range 0.2. Ratio 2: A = 1 clips to 1.2, A = -1 stays 2. Ratio 1/2: A = 1 stays, A = -1 clips to 0.8."""
    change = torch.tensor([math.log(2), math.log(2), -math.log(2), -math.log(2)], dtype=torch.float64)
    signs = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64)
    close(rloo_loss(change + 5, torch.full_like(change, 5), signs, clip_range=0.2), [-1.2, 2.0, -0.5, 0.8], FLOAT64)


def test_log_ratios_are_held_within_twenty():
    """Beyond, the ratio is e^20 (unclipped where A < 0) or e^-20 (unclipped where A > 0)."""
    new, old = torch.tensor([30.0, -30.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    found = rloo_loss(new, old, torch.tensor([-1.0, 1.0], dtype=torch.float64), clip_range=0.2)
    close(found[0], math.exp(20), FLOAT64)
    close(found[1] * 1e9, -math.exp(-20) * 1e9, FLOAT64)


HAND = rows([(1, 2), (1, 1)])
HAND_OLD = torch.tensor([[math.log(0.5), math.log(0.4)], [math.log(0.8), math.nan]], dtype=torch.float64)
HAND_REF = torch.tensor([[math.log(0.25), math.log(0.8)], [math.log(0.4), math.nan]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("level", "advantages"), [("sequence", [3.0 + 0.5 * math.log(2), -3.0 - 0.5 * math.log(2)]), ("token", None)]
)
def test_preparation_by_hand(level: str, advantages: list[float] | None):
    """Two responses, scores 4 and 1, kl_coef 1/2; log-ratios (log 2, -log 2) and (log 2).

    R = 4 - 0 and 1 - log(2)/2, so the advantages are ±(3 + log(2)/2). By token: the first response earns 4 from its
    first token on, and 4 + log(2)/2 from its second, the other's baseline is its R: (3 + log(2)/2, 3 + log 2).
    """
    config = replace(CONFIG, kl_coef=0.5, group_size=2, level=level)
    batch, metrics = prepare(rollouts(HAND, torch.tensor([4.0, 1.0])), HAND_OLD, HAND_REF, config)
    half = 0.5 * math.log(2)
    expected = [[3 + half, 3 + 2 * half], [-3 - half, 0.0]] if advantages is None else advantages
    close(batch.advantages, expected)
    close(metrics["reward/mean"], [4.0, 1.0 - half])
    close(metrics["kl/reference"], [0.0, math.log(2)])
    close(metrics["counted_fraction"], [1.0, 1.0], EXACT)
    assert count(batch, config) == (2 if level == "sequence" else 3)


def test_the_ratio_of_a_response_is_the_product_of_its_tokens():
    """Ratios 1.5 and 0.6 of two tokens: 0.9 as one action, inside a range of 0.2; as two both are outside."""
    new = torch.tensor([[math.log(1.5), math.log(0.6)], [0.0, 0.0]], dtype=torch.float64)
    for level, losses, clipped in (
        ("sequence", [-0.9, -1.0], [0.0, 0.0]),
        ("token", [-1.2, -0.6, -1.0], [1.0, 1.0, 0.0]),
    ):
        config = replace(CONFIG, level=level)
        mask = HAND.response_mask[:, 1:]
        ones = torch.ones(2, dtype=torch.float64) if level == "sequence" else mask.double()
        output = step(Given(new), RLOOBatch(HAND, torch.zeros_like(new), ones), config, temperature=1.0)
        close(output.losses[output.mask], losses, FLOAT64)
        close(output.metrics["clip_fraction"], clipped, EXACT)


# -- what must not change --------------------------------------------------------------------------------------------


@both_levels
def test_parts_add_up_to_the_whole(level: str):
    """Sum over single rows of loss times share, divided by the common denominator."""
    config = replace(CONFIG, level=level)
    batch, new, total, shares = prepared(config), draw(3), 0.0, 0.0
    for row in range(6):
        part = take_rows(batch, [row])
        output = step(Given(new[[row], : part.old_logprobs.shape[1]]), part, config, temperature=1.0)
        total += float(torch.where(output.mask, output.losses, 0.0).sum())
        shares += count(part, config)
    close(total / shares, reduced(new, batch, config), FLOAT64)


@both_levels
def test_the_first_update_has_ratio_one(level: str):
    config = replace(CONFIG, level=level)
    batch = prepared(config)
    output = step(Given(batch.old_logprobs), batch, config, temperature=1.0)
    close(output.losses[output.mask], -batch.advantages[output.mask], EXACT)
    assert output.metrics["clip_fraction"].eq(0).all()
    assert output.metrics["kl/approx"].eq(0).all()


def test_without_a_penalty_all_tokens_have_the_advantage_of_their_response():
    sequence, token = (prepared(replace(CONFIG, kl_coef=0.0, level=level)) for level in ("sequence", "token"))
    close(token.advantages, torch.where(MASK, sequence.advantages[:, None], 0.0), FLOAT64)


def test_the_first_token_has_the_advantage_of_its_response():
    sequence, token = (prepared(replace(CONFIG, level=level)) for level in ("sequence", "token"))
    first = MASK.int().argmax(1, keepdim=True)
    close(token.advantages.gather(1, first)[:, 0], sequence.advantages, FLOAT64)
    assert float((token.advantages.sum(1) / MASK.sum(1) - sequence.advantages).abs().max()) > 0.01


@both_levels
def test_a_constant_added_to_the_scores_of_a_group_changes_nothing(level: str):
    config = replace(CONFIG, level=level)
    shift = torch.tensor([7.0] * 3 + [-40.0] * 3, dtype=torch.float64)
    shifted = prepared(config, rollouts(BATCH, SCORES + shift))
    close(shifted.advantages, prepared(config).advantages, FLOAT64)


def test_the_advantages_of_a_group_add_up_to_nothing():
    close(prepared(CONFIG).advantages.view(2, 3).sum(1), [0.0, 0.0], FLOAT64)


def test_a_prompt_that_comes_twice_makes_two_groups():
    """All responses answer the same prompt; still each three are their own baselines: -> R - mean of the other two."""
    alike, zeros = rows([(2, 3)] * 6), torch.zeros(6, 4)
    batch, _ = prepare(rollouts(alike, SCORES), zeros, zeros, CONFIG)
    close(batch.advantages, [1.3, -1.7, 0.4, -1.55, -1.1, 2.65], FLOAT64)


@both_levels
def test_permuting_a_group_and_the_groups_permutes_the_result(level: str):
    config = replace(CONFIG, level=level)
    order = torch.tensor([4, 3, 5, 2, 0, 1])
    turned = Sequences(*(x[order] for x in (BATCH.input_ids, BATCH.attention_mask, BATCH.response_mask)))
    again, _ = prepare(rollouts(turned, SCORES[order]), draw(1)[order], draw(2)[order], config)
    close(again.advantages, prepared(config).advantages[order], FLOAT64)


@both_levels
@pytest.mark.parametrize("poison", [math.nan, 1e9])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_padding_may_hold_anything(level: str, poison: float, cap: float | None):
    config = replace(CONFIG, level=level)
    clean, dirty = (
        prepare(
            replace(ROLLOUTS, sampled_logprobs=(draw(1) - draw(5)).masked_fill(~MASK, filler)),
            draw(1).masked_fill(~MASK, filler),
            draw(2).masked_fill(~MASK, filler),
            config,
            importance_cap=cap,
        )
        for filler in (0.0, poison)
    )
    close(dirty[0].advantages, clean[0].advantages, EXACT)
    for name, values in clean[1].items():
        close(dirty[1][name], values, EXACT)
    leaf = draw(3).requires_grad_()
    loss = reduced(leaf, dirty[0], config)
    close(loss, reduced(draw(3), clean[0], config), EXACT)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert grad.isfinite().all()


@both_levels
def test_the_loss_passes_gradcheck(level: str):
    config = replace(CONFIG, level=level)
    batch = prepared(config)
    leaf = (draw(1) + draw(3, 0.2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reduced(x, batch, config), (leaf,))


# -- what counts -----------------------------------------------------------------------------------------------------


@both_levels
def test_responses_without_a_score_leave_baselines_loss_and_denominator(level: str):
    """In the first group two of three have a score, in the second one: it has advantage 0 and stays in the mean."""
    config = replace(CONFIG, level=level)
    scored = torch.tensor([True, False, True, False, True, False])
    given = replace(ROLLOUTS, scores=SCORES.masked_fill(~scored, math.nan), scored=scored)
    batch, metrics = prepare(given, draw(1), draw(2), config)
    known = [s if k else None for s, k in zip(SCORES.tolist(), scored.tolist(), strict=True)]
    expected = loop_advantages(config, known)
    same(shown(batch), expected)
    assert not any(expected[4])
    close(metrics["counted_fraction"], scored.double(), EXACT)
    whole = prepare(ROLLOUTS, draw(1), draw(2), config)[1]
    close(metrics["reward/mean"], whole["reward/mean"][scored], FLOAT64)
    close(metrics["kl/reference"], whole["kl/reference"], EXACT)
    close(reduced(draw(3), batch, config), loop_loss(config, draw(3), expected, scored.tolist()), FLOAT64)
    assert count(batch, config) == (3 if level == "sequence" else 3 + 4 + 2)


@both_levels
def test_cut_off_responses_stay_in_the_baselines_and_leave_the_loss(level: str):
    config = replace(CONFIG, level=level, mask_truncated=True)
    cut = replace(ROLLOUTS, truncated=torch.tensor([False, True, False, False, False, False]))
    batch, metrics = prepare(cut, draw(1), draw(2), config)
    rest = [0, 2, 3, 4, 5]
    close(batch.advantages[rest], prepared(config).advantages[rest], EXACT)
    close(metrics["counted_fraction"], [1.0, 0.0, 1.0, 1.0, 1.0, 1.0], EXACT)
    counted = [i != 1 for i in range(6)]
    expected = loop_loss(config, draw(3), loop_advantages(config, SCORES.tolist()), counted)
    close(reduced(draw(3), batch, config), expected, FLOAT64)
    kept = prepare(cut, draw(1), draw(2), replace(config, mask_truncated=False))
    close(kept[1]["counted_fraction"], [1.0] * 6, EXACT)
    close(kept[0].advantages, prepared(config).advantages, EXACT)


def test_cut_off_responses_without_a_score_stay_out():
    given = replace(ROLLOUTS, scored=torch.tensor([True, False, True, True, True, True]))
    metrics = prepare(given, draw(1), draw(2), replace(CONFIG, mask_truncated=True))[1]
    close(metrics["counted_fraction"], [1.0, 0.0, 1.0, 1.0, 1.0, 1.0], EXACT)


@both_levels
def test_a_batch_without_any_score_gives_no_nan(level: str):
    config = replace(CONFIG, level=level)
    given = replace(ROLLOUTS, scores=SCORES * math.nan, scored=torch.zeros(6, dtype=torch.bool))
    batch, metrics = prepare(given, draw(1), draw(2), config)
    close(batch.advantages, torch.zeros_like(batch.advantages), EXACT)
    assert all(values.isfinite().all() for values in metrics.values())
    assert step(Given(draw(3)), batch, config, temperature=1.0).losses.isfinite().all()
    assert count(batch, config) == 0


def test_importance_weights_count_by_token_or_by_response():
    """The sampler gave each token half of what training does: weights 2 by token, 2^n by response, cut at 5."""
    given = replace(ROLLOUTS, sampled_logprobs=torch.where(MASK, draw(1) - math.log(2), 0.0))
    lengths = [3, 1, 4, 6, 2, 5]
    for level, weights in (("sequence", [min(2.0**n, 5.0) for n in lengths]), ("token", [2.0] * 6)):
        config = replace(CONFIG, level=level)
        plain = prepared(config)
        batch, metrics = prepare(given, draw(1), draw(2), config, importance_cap=5.0)
        factor = torch.tensor(weights, dtype=torch.float64)
        close(batch.advantages, plain.advantages * (factor if level == "sequence" else factor[:, None]), FLOAT64)
        told = weights if level == "sequence" else [2.0] * sum(lengths)
        close(metrics["importance/mean"], told, FLOAT64)
        close(metrics["importance/clipped_fraction"], [float(w >= 5) for w in told], EXACT)
    assert "importance/mean" not in prepare(given, draw(1), draw(2), CONFIG)[1]


@both_levels
def test_a_step_logs_what_it_saw_at_its_temperature_and_keeps_no_graph(level: str):
    """``Uncertain`` answers entropy 2 at every token; the KL to the sampling policy is its own k3, by token."""
    config = replace(CONFIG, level=level)
    batch = prepared(config)
    change = draw(9)
    models = Uncertain((batch.old_logprobs + change).requires_grad_())
    output = step(models, batch, config, temperature=0.9)
    assert models.temperatures == [0.9]
    close(output.metrics["entropy"], [2.0] * 21, EXACT)
    close(output.metrics["kl/approx"], [math.exp(d) - d - 1 for d in change[MASK].tolist()], 1e-6)
    ratios = torch.exp(change.sum(1) if level == "sequence" else change[MASK]).tolist()
    close(output.metrics["clip_fraction"], [float(abs(r - 1) > 0.2) for r in ratios], EXACT)
    assert output.losses.requires_grad
    plain_numbers(output.metrics)
    plain_numbers(prepare(ROLLOUTS, draw(1), draw(2), config)[1])


@both_levels
def test_a_ratio_on_the_bound_is_not_clipped(level: str):
    """Ratio 1 with range 0."""
    config = replace(CONFIG, level=level, clip_range=0.0)
    batch = prepared(config)
    assert step(Given(batch.old_logprobs), batch, config, temperature=1.0).metrics["clip_fraction"].eq(0).all()


# -- where it leads --------------------------------------------------------------------------------------------------


REF = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)


@both_levels
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_its_optimum_is_the_boltzmann_policy_with_k1_alone(level: str, estimator: str):
    """One token, three actions, pi_ref = (.5, .3, .2), r = (1, 0, .5), kl_coef 1/2: pi_ref e^(r / kl_coef) / Z.

    All nine groups of two are enumerated with their probability. With k1 E[A | a] = R_a - E[R], which vanishes where
    r - log(pi / pi_ref) / 2 is the same for all actions: at (.814, .066, .120). With k3 in its place it does not.
    """
    config = replace(CONFIG, kl_coef=0.5, kl_estimator=estimator, group_size=2, level=level)
    groups = torch.tensor(list(product(range(3), repeat=2)))
    actions = groups.flatten()
    sequences = collate([Example((9,), (a,)) for a in actions.tolist()])
    logits = REF.log().clone().requires_grad_()
    for _ in range(300):
        policy = logits.log_softmax(0)
        old = policy.detach()
        batch, _ = prepare(rollouts(sequences, REWARD[actions]), old[actions, None], REF.log()[actions, None], config)
        losses = step(Given(policy[actions, None]), batch, config, temperature=1.0).losses.view(9, 2)
        objective = (old.exp()[groups].prod(1) * losses.mean(1)).sum()
        (grad,) = torch.autograd.grad(objective, logits)
        with torch.no_grad():
            logits -= 6.0 * grad
    weights = [p * math.exp(r / 0.5) for p, r in zip(REF.tolist(), REWARD.tolist(), strict=True)]
    expected = [w / sum(weights) for w in weights]
    found = logits.detach().softmax(0)
    if estimator == "k1":
        close(found, expected, 1e-6)
        close(found, [0.814, 0.066, 0.120], 1e-3)
    else:
        assert float((found - torch.tensor(expected)).abs().max()) > 0.02


@both_levels
def test_the_expected_gradient_is_that_of_the_objective(level: str):
    """Up to two tokens of three, where token 0 ends: seven responses, all 49 groups of two with their probability.

    Exact objective: sum over y of pi(y) (r(y) - kl_coef log(pi(y) / pi_ref(y))). Of each group's summed losses
    the gradient has twice the opposite expectation, whatever the baselines and the length of the responses.
    """
    responses = [(0,), *product((1, 2), range(3))]
    draws = torch.Generator().manual_seed(3)
    table, ref_table = (torch.randn(4, 3, generator=draws, dtype=torch.float64) for _ in range(2))
    scores = torch.randn(7, generator=draws, dtype=torch.float64)
    table.requires_grad_()

    def tokens(logits: Tensor) -> Tensor:
        """Row 3 holds the logits of the first token, row k those after token k. (7, 2)"""
        logprobs = logits.log_softmax(1)
        zero = torch.zeros((), dtype=torch.float64)
        return torch.stack(
            [torch.stack([logprobs[3, y[0]], logprobs[y[0], y[1]] if len(y) > 1 else zero]) for y in responses]
        )

    new, ref = tokens(table), tokens(ref_table)
    sums = new.sum(1)
    objective = (sums.exp() * (scores - 0.4 * (sums - ref.sum(1)))).sum()
    (expected,) = torch.autograd.grad(objective, table, retain_graph=True)
    config = replace(CONFIG, kl_coef=0.4, group_size=2, level=level)
    groups = torch.tensor(list(product(range(7), repeat=2)))
    rows_ = groups.flatten()
    sequences = collate([Example((9,), responses[i]) for i in rows_.tolist()])
    batch, _ = prepare(rollouts(sequences, scores[rows_]), new.detach()[rows_], ref[rows_], config)
    output = step(Given(new[rows_]), batch, config, temperature=1.0)
    losses = torch.where(output.mask, output.losses, 0.0).reshape(49, 2, -1).sum((1, 2))
    (found,) = torch.autograd.grad((sums.detach().exp()[groups].prod(1) * losses).sum(), table)
    close(found, -2 * expected, FLOAT64)
    assert float(expected.abs().max()) > 0.01


class WholePasses:
    """Forward passes of a small model: all rows at once."""

    def __init__(self, models: Bigram, temperature: float):
        self._models, self._temperature = models, temperature

    def logprobs(self, role: str, sequences: Sequences) -> Tensor:
        return self._models.logprobs(role, sequences, self._temperature)[0].detach()

    def policy_and_reference(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        return self.logprobs("policy", sequences), self.logprobs("reference", sequences)

    def values(self, role: str, sequences: Sequences) -> Tensor:
        raise AssertionError("there is no critic")


def sample(models: Bigram, generator: torch.Generator, prompts: int, samples: int, temperature: float) -> Rollouts:
    """Return responses of up to five tokens, where token 11 ends, that earn one for each token 3."""
    prompt = torch.arange(prompts).repeat_interleave(samples) % 10 + 1
    odds = (models.table.detach() / temperature).softmax(1)
    tokens = [prompt]
    for _ in range(5):
        tokens.append(torch.multinomial(odds[tokens[-1]], 1, generator=generator)[:, 0])
    drawn = torch.stack(tokens[1:], 1).tolist()
    responses = [tuple(row[: row.index(11) + 1] if 11 in row else row) for row in drawn]
    sequences = collate([Example((p,), r) for p, r in zip(prompt.tolist(), responses, strict=True)])
    truncated = torch.tensor([r[-1] != 11 for r in responses])
    scores = torch.tensor([float(r.count(3)) for r in responses])
    return replace(rollouts(sequences, scores), truncated=truncated)


@both_levels
def test_it_learns_through_its_wiring_and_the_penalty_holds_it(level: str):
    """Two passes over each of 30 rollout batches, eight prompts with four responses.

    The start earns 0.15 a response. Other seeds end between 1.5 and 3.6 without a penalty, below 0.3 with it.
    """
    earned: dict[float, float] = {}
    distance: dict[float, float] = {}
    for kl_coef in (0.0, 5.0):
        models, generator = Bigram(), torch.Generator().manual_seed(2)
        config = replace(CONFIG, kl_coef=kl_coef, group_size=4, level=level)
        algorithm = build(models, WholePasses(models, 0.9), config, SamplingConfig(0.9, None, 5))
        assert (algorithm.samples, algorithm.start, algorithm.again, algorithm.limit) == (4, {}, None, 0)
        optimizer = MasterAdamW([([models.table], 0.05)], 0.0, kind="adamw")
        for _ in range(30):
            given = sample(models, generator, 8, algorithm.samples, 0.9)
            batch, metrics, carry = algorithm.prepare(given, algorithm.start, False)
            assert carry == {}
            for turn in range(2):
                parts = [take_rows(batch, list(range(i, i + 8))) for i in range(0, 32, 8)]
                done = update(parts, algorithm.steps, algorithm.count, optimizer)
                assert turn or done["kl/approx"] < 1e-6
        earned[kl_coef] = float(sample(models, generator, 50, 4, 0.9).scores.mean())
        distance[kl_coef] = float(metrics["kl/reference"].mean())
    start = float(sample(Bigram(), torch.Generator().manual_seed(2), 50, 4, 0.9).scores.mean())
    assert start < 0.3
    assert earned[0.0] > 1.0
    assert earned[5.0] < 0.5
    assert distance[0.0] > 1.0
    assert distance[5.0] < 0.5


def test_the_wiring_passes_sampling_on():
    """The cap reaches the preparation and the temperature the step."""
    models = Given(draw(3))

    class Fixed:
        def logprobs(self, role: str, sequences: Sequences) -> Tensor:
            raise AssertionError("both are asked for at once")

        def policy_and_reference(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
            return draw(1), draw(2)

        def values(self, role: str, sequences: Sequences) -> Tensor:
            raise AssertionError("there is no critic")

    algorithm = build(models, Fixed(), replace(CONFIG, level="token"), SamplingConfig(0.7, 2.0, 8))
    given = replace(ROLLOUTS, sampled_logprobs=draw(1) - 9.0)
    batch, metrics, carry = algorithm.prepare(given, {"kept": 1.0}, False)
    assert carry == {"kept": 1.0}
    close(metrics["importance/mean"], [2.0] * 21, EXACT)
    steps: list[Callable[[RLOOBatch], object]] = list(algorithm.steps)
    assert len(steps) == 1
    steps[0](batch)
    assert models.temperatures == [0.7]
    assert algorithm.count(batch) == 21
