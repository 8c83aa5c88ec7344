"""Both loops on a table of logits: resume, micro-batches, minibatches, the check of the first update."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.algorithms import grpo, sft
from alignflow.data.collate import take_rows
from alignflow.loops import offline, online
from alignflow.loops.update import Diverged
from alignflow.optim import MasterAdamW
from alignflow.types import Carry, OnlineAlgorithm, Rollouts, Sequences
from tests.close import EXACT, close
from tests.toy import CONFIG, Bigram, enough, rollouts, rows


def never(step: int, state: Callable[[], dict[str, Any]]) -> None:
    pass


BATCH = rows([(2, 3), (4, 1), (1, 6), (3, 2), (2, 2), (5, 4)])


class Keeper:
    """Keeps the state of one step as a checkpoint file would."""

    def __init__(self, at: int) -> None:
        self.at, self.state = at, io.BytesIO()

    def __call__(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        if step == self.at:
            torch.save(state(), self.state)

    def load(self) -> dict[str, Any]:
        self.state.seek(0)
        loaded: dict[str, Any] = torch.load(self.state, weights_only=True)
        return loaded


def _offline(models: Bigram, **given: Any) -> list[tuple[int, float]]:
    log: list[tuple[int, float]] = []
    offline.train(
        lambda k, _: [take_rows(BATCH, [k % 6, (k + 1) % 6]), take_rows(BATCH, [(k + 3) % 6])],
        sft.build(models),
        MasterAdamW([([models.table], CONFIG.learning_rate)], CONFIG.weight_decay, kind="adamw"),
        CONFIG,
        log=lambda step, metrics: log.append((step, metrics["loss"])),
        budget=enough(CONFIG.micro_batch_tokens),
        keep=given.pop("keep", never),
        **given,
    )
    return log


def _online(models: Bigram, **given: Any) -> list[tuple[int, float, float]]:
    keys = grpo.GRPOConfig(0.1, 0.2, 0.2, 2, "dapo", 0.01, given.pop("zero_variance", "keep"), 1, mask_truncated=False)
    alike, updates, config = given.pop("alike", False), given.pop("updates", 2), given.pop("config", CONFIG)
    log: list[tuple[int, float, float]] = []

    def collect(step: int) -> tuple[Rollouts, dict[str, float]]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(1, 12, BATCH.input_ids.shape, generator=generator)
        batch = replace(BATCH, input_ids=torch.where(BATCH.attention_mask, ids, 0))
        scores = (batch.input_ids == 3).where(batch.response_mask, False).sum(1).float()
        return rollouts(batch, 0 * scores if alike else scores), {"score/mean": float(scores.mean())}

    def prepare(given: Rollouts, carry: Carry, both: bool) -> tuple[grpo.GRPOBatch, dict[str, Tensor], Carry]:
        with torch.no_grad():
            mine = models.logprobs("policy", given.sequences)[0] if both else None
            other = models.logprobs("reference", given.sequences)[0]
        return (*grpo.prepare(given, mine, other, keys), {"batches": carry["batches"] + 1})

    online.train(
        OnlineAlgorithm(
            samples=2,
            prepare=prepare,
            steps=[lambda batch: grpo.step(models, batch, keys, temperature=1.0)],
            count=lambda batch: grpo.count(batch, keys, max_response_length=8),
            start={"batches": 0.0},
        ),
        collect,
        MasterAdamW([([models.table], CONFIG.learning_rate)], CONFIG.weight_decay, kind="adamw"),
        config,
        epochs=updates,
        minibatches=updates,
        target_kl=given.pop("target_kl", None),
        budget=enough(config.micro_batch_tokens),
        log=lambda step, metrics: log.append((step, metrics.get("loss", 0.0), metrics["updates"])),
        keep=given.pop("keep", never),
        **given,
    )
    return log


@pytest.mark.parametrize("loop", [_offline, _online])
def test_a_resumed_run_equals_an_uninterrupted_one(loop: Callable[..., list[Any]]):
    whole, resumed, keeper = Bigram(), Bigram(), Keeper(3)
    log = loop(whole, keep=keeper)
    assert [entry[0] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert loop(resumed, resume=keeper.load()) == log[3:]
    close(resumed.table, whole.table, EXACT)
    assert not whole.table.equal(whole.start)


def test_a_resumed_finished_run_does_nothing():
    whole, resumed, keeper = Bigram(), Bigram(), Keeper(6)
    _offline(whole, keep=keeper)
    assert _offline(resumed, resume=keeper.load()) == []
    close(resumed.table, whole.table, EXACT)


def test_micro_batches_change_nothing_online():
    small, large = Bigram(), Bigram()
    _online(small, config=replace(CONFIG, micro_batch_tokens=16))
    _online(large, config=replace(CONFIG, micro_batch_tokens=4096))
    close(small.table, large.table, 1e-5)


def test_every_epoch_deals_each_row_that_counts_once():
    batch = rows([(1, 1)] * 8).counting(torch.arange(8) != 5)
    cut = online._minibatches(batch, 2, 3, seed=(1, 4))
    for epoch in (cut[:3], cut[3:]):
        assert sorted(row for part in epoch for row in part) == [0, 1, 2, 3, 4, 6, 7]
    assert cut[:3] != cut[3:]


def test_no_minibatch_is_empty_when_few_rows_count():
    batch = rows([(1, 1)] * 4)
    assert [len(part) for part in online._minibatches(batch.counting(torch.arange(4) < 2), 1, 3, seed=(1, 0))] == [1, 1]
    assert online._minibatches(batch.counting(torch.zeros(4).bool()), 2, 3, seed=(1, 0)) == []


def test_a_rollout_batch_in_which_nothing_counts_changes_nothing_and_is_logged():
    models = Bigram()
    log = _online(models, alike=True, zero_variance="drop")
    assert [(step, updates) for step, _, updates in log] == [(k, 0.0) for k in range(1, 7)]
    close(models.table, models.start, EXACT)


def test_a_policy_too_far_from_the_one_that_sampled_leaves_the_rollout_batch():
    """Two epochs of two minibatches are four updates; a tiny bound stops after two: the first has KL 0."""
    assert {updates for _, _, updates in _online(Bigram())} == {4.0}
    assert {updates for _, _, updates in _online(Bigram(), target_kl=1e-12)} == {2.0}
    assert {updates for _, _, updates in _online(Bigram(), target_kl=100.0)} == {4.0}


def test_what_is_carried_over_is_part_of_a_checkpoint():
    keeper = Keeper(3)
    _online(Bigram(), keep=keeper)
    assert keeper.load()["carry"] == {"batches": 3.0}


@pytest.mark.parametrize("updates", [1, 2])
def test_a_policy_that_does_not_start_at_its_reference_stops_the_run(updates: int):
    models = Bigram()
    models.start = models.start + torch.randn(12, 12, generator=torch.Generator().manual_seed(3))
    with pytest.raises(Diverged, match="start at its reference"):
        _online(models, updates=updates)
    close(models.table, Bigram().table, EXACT)


@pytest.mark.parametrize(("updates", "asked"), [(1, 1), (2, 6)])
def test_the_policy_is_asked_before_updates_only_where_they_need_it(updates: int, asked: int):
    """Six rollout batches: with one update each, only the check of the start asks; with more, every batch does."""
    models, before = Bigram(), list[str]()
    original = models.logprobs

    def counted(role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False) -> Any:
        if role == "policy" and not torch.is_grad_enabled():
            before.append(role)
        return original(role, batch, temperature, entropy)

    models.logprobs = counted  # type: ignore[method-assign]
    _online(models, updates=updates)
    assert len(before) == asked


def test_a_first_update_away_from_the_sampling_policy_stops_the_run():
    models = Bigram()
    original = models.logprobs

    def drifting(role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False) -> Any:
        found = original(role, batch, temperature, entropy)
        return (found[0] + 0.5 * batch.response_mask[:, 1:], found[1]) if entropy else found

    models.logprobs = drifting  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="start from the policy that sampled"):
        _online(models)
