"""When memory runs out, parts become smaller, and results do not change."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignflow.algorithms import grpo, sft
from alignflow.data.collate import sequence_lengths, take_rows
from alignflow.loops import offline, online
from alignflow.loops.by_rows import RowPasses, by_rows
from alignflow.loops.order import micro_batches
from alignflow.memory import Budget, DoesNotFit, fitting, part
from alignflow.optim import MasterAdamW
from alignflow.types import Rollouts, SamplingConfig, Sequences, StepOutput
from tests.close import EXACT, close
from tests.toy import CONFIG, Bigram, rollouts, rows

BATCH = rows([(2, 3), (4, 1), (1, 6), (3, 2), (2, 2), (5, 4)])  # 5, 5, 7, 5, 4 and 9 tokens
LENGTHS = sequence_lengths(BATCH)


def on_cuda() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def on_cpu() -> RuntimeError:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


class Small(Bigram):
    """A model on a machine with memory for a number of tokens per forward pass; counts refused passes."""

    def __init__(self, most: int, error: Callable[[], RuntimeError] = on_cuda) -> None:
        super().__init__()
        self.most, self.error, self.failures = most, error, 0

    def logprobs(
        self, role: str, batch: Sequences, temperature: float = 1.0, entropy: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        if sum(sequence_lengths(batch)) > self.most:
            self.failures += 1
            raise self.error()
        return super().logprobs(role, batch, temperature, entropy)


def cut(k: int, budget: int) -> list[Sequences]:
    return [take_rows(BATCH, group) for group in micro_batches(LENGTHS, [k % 6, (k + 1) % 6, (k + 3) % 6, 5], budget)]


def _offline(
    models: Bigram,
    said: list[str],
    step: Callable[[Sequences], StepOutput] | None = None,
    *,
    budget: int = 64,
    cut: Callable[[int, int], list[Sequences]] = cut,
) -> list[dict[str, float]]:
    log: list[dict[str, float]] = []
    offline.train(
        cut,
        replace(sft.build(models), step=step) if step else sft.build(models),
        MasterAdamW([([models.table], CONFIG.learning_rate)], CONFIG.weight_decay, kind="adamw"),
        replace(CONFIG, micro_batch_tokens=budget),
        budget=Budget(budget, said.append),
        log=lambda step, metrics: log.append(dict(metrics)),
        keep=lambda step, state: None,
    )
    return log


def _online(models: Bigram, said: list[str]) -> list[dict[str, float]]:
    keys = grpo.GRPOConfig(0.1, 0.2, 0.2, 2, "dapo", 0.01, "keep", 1, mask_truncated=False)
    log: list[dict[str, float]] = []

    def collect(step: int) -> tuple[Rollouts, dict[str, float]]:
        ids = torch.randint(1, 12, BATCH.input_ids.shape, generator=torch.Generator().manual_seed(step))
        batch = replace(BATCH, input_ids=torch.where(BATCH.attention_mask, ids, 0))
        return rollouts(batch, (batch.input_ids == 3).where(batch.response_mask, False).sum(1).float()), {}

    budget = Budget(CONFIG.micro_batch_tokens, said.append)

    passes = RowPasses(models, 1.0, budget)  # type: ignore[arg-type]  # a table has log-probs and fingerprints, too
    online.train(
        grpo.build(models, passes, keys, SamplingConfig(1.0, None, 8)),
        collect,
        MasterAdamW([([models.table], CONFIG.learning_rate)], CONFIG.weight_decay, kind="adamw"),
        CONFIG,
        epochs=2,
        minibatches=2,
        target_kl=None,
        budget=Budget(CONFIG.micro_batch_tokens, said.append),
        log=lambda step, metrics: log.append(dict(metrics)),
        keep=lambda step, state: None,
    )
    return log


def same(found: Sequence[dict[str, float]], expected: Sequence[dict[str, float]]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert mine.keys() == other.keys()
        names = mine.keys() - {"tokens_per_second"}
        close([mine[name] for name in names], [other[name] for name in names])


@pytest.mark.parametrize("loop", [_offline, _online])
@pytest.mark.parametrize("error", [on_cuda, on_cpu])
def test_a_run_that_ran_out_of_memory_ends_with_the_weights_of_one_that_did_not(
    loop: Callable[..., list[dict[str, float]]], error: Callable[[], RuntimeError]
):
    roomy, small, said = Bigram(), Small(10, error), list[str]()
    expected = loop(roomy, [])
    same(loop(small, said), expected)
    close(small.table, roomy.table)
    assert not small.table.equal(small.start)
    assert small.failures == len(said) > 0


def test_what_was_too_much_once_is_not_tried_again():
    """A first step of 24 tokens ran out at a budget of 64, so that 12 are tried; no later step has more."""
    small, said, asked = Small(10), list[str](), list[int]()

    def asking(k: int, budget: int) -> list[Sequences]:
        asked.append(budget)
        return cut(k, budget)

    _offline(small, said, cut=asking)
    tried = [budget for budget in asked if budget > 1]  # 1 only asks what the smallest parts are
    assert tried[:2] == [64, 12]
    assert tried == sorted(tried, reverse=True)
    assert small.failures == len(said) == len(set(tried)) - 1


@pytest.mark.parametrize("at", [2, 4, 5])
def test_gradients_and_metrics_of_an_attempt_that_failed_late_are_dropped(at: int):
    """The pass ``at`` of the run fails, when others of its optimiser step have left gradients behind."""
    roomy, models, said, seen = Bigram(), Bigram(), list[str](), list[Sequences]()

    def step(batch: Sequences) -> StepOutput:
        seen.append(batch)
        if len(seen) == at:
            raise on_cuda()
        return sft.step(models, batch)

    same(_offline(models, said, step, budget=16), _offline(roomy, [], budget=16))
    close(models.table, roomy.table)
    assert len(said) == 1


class FailsBackwards(torch.autograd.Function):
    """The identity, whose gradient runs out of memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise on_cuda()


def test_memory_that_runs_out_in_the_backward_pass_counts_as_well():
    roomy, models, said = Bigram(), Bigram(), list[str]()

    def step(batch: Sequences) -> StepOutput:
        output = sft.step(models, batch)
        failing = sum(sequence_lengths(batch)) > 10
        return replace(output, losses=FailsBackwards.apply(output.losses)) if failing else output

    same(_offline(models, said, step), _offline(roomy, []))
    close(models.table, roomy.table)
    assert said


@pytest.mark.parametrize("loop", [_offline, _online])
def test_a_row_that_does_not_fit_stops_the_run_and_names_its_tokens(loop: Callable[..., Any]):
    models = Small(8)
    with pytest.raises(DoesNotFit, match="ran out on 9 tokens"):
        loop(models, [])
    close(models.table, models.start, EXACT)


def test_another_error_is_not_taken_for_memory():
    def broken() -> RuntimeError:
        return RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        _offline(Small(10, broken), [])


def test_an_update_that_runs_out_of_memory_is_not_done_twice(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def full(self: MasterAdamW, **keys: float) -> float:
        calls.append(keys)
        raise on_cuda()

    monkeypatch.setattr(MasterAdamW, "step", full)
    with pytest.raises(torch.OutOfMemoryError):
        _offline(Bigram(), [])
    assert len(calls) == 1


@pytest.mark.parametrize("columns", [None, 8])
def test_a_pass_without_gradients_gives_the_same_rows(columns: int | None):
    models, said = Small(10), list[str]()
    budget = Budget(64, said.append)

    def run(models: Bigram, budget: Budget) -> Tensor:
        def forward(batch: Sequences) -> Tensor:
            found = models.logprobs("policy", batch)[0].detach()
            return found.sum(1) if columns is None else found

        return by_rows(forward, BATCH, budget, columns=columns)

    close(run(models, budget), run(Bigram(), Budget(64, pytest.fail)))
    assert budget.size < 64
    assert len(said) == models.failures
    run(models, budget)
    assert len(said) == models.failures, "the smaller budget stays"


def test_what_the_failed_attempt_held_is_free_when_the_next_begins():
    held = list[weakref.ref[Tensor]]()

    def work(parts: Sequence[int]) -> int:
        assert all(tensor() is None for tensor in held)
        with part(0):
            mine = torch.zeros(3)
            held.append(weakref.ref(mine))
            if len(held) < 3:
                raise on_cuda()
        return len(parts)

    assert fitting(lambda size: [size] * (64 // size), work, int, Budget(64, lambda _: None)) == 4
    assert len(held) == 3


def test_torch_says_so_when_the_machine_s_own_memory_runs_out():
    """The real error of an allocation of 4 EiB."""

    def work(parts: Sequence[int]) -> str:
        with part(0):
            torch.empty(2**62 if parts[0] > 1 else 1, dtype=torch.int8)
        return "done"

    assert fitting(lambda size: [size] * (2 // size), work, int, Budget(2, lambda _: None)) == "done"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_s_memory_that_runs_out_does_so_as_well():
    """Twice the available memory, all of it, and half of it."""

    def work(parts: Sequence[int]) -> int:
        with part(0):
            torch.empty(parts[0] * torch.cuda.mem_get_info()[1] // 4, dtype=torch.int8, device="cuda")
        return parts[0]

    assert fitting(lambda size: [size] * (8 // size), work, int, Budget(8, lambda _: None)) == 2
