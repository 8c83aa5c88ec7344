"""One optimiser step from micro-batches."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from alignflow.algorithms import sft
from alignflow.data.collate import take_rows
from alignflow.loops import offline
from alignflow.loops.update import Diverged, Means
from alignflow.optim import MasterAdamW
from alignflow.types import OfflineAlgorithm, StepOutput
from tests.close import EXACT, close
from tests.toy import CONFIG, Bigram, enough, rows, update

BATCH = rows([(2, 3), (4, 1), (1, 6), (3, 2), (2, 2), (5, 4)])


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3, 4, 5]], [[0, 1], [2], [3, 4, 5]], [[i] for i in range(6)]])
def test_micro_batches_give_the_weights_of_one_batch(parts: list[list[int]]):
    whole = _after([[0, 1, 2, 3, 4, 5]])
    close(_after(parts), whole, 1e-6)


def _after(parts: list[list[int]]) -> Tensor:
    models = Bigram()
    optimizer = MasterAdamW([([models.table], 0.1)], 0.0, kind="adamw")
    batches = [take_rows(BATCH, part) for part in parts]
    update(batches, [lambda b: sft.step(models, b)], sft.count, optimizer)
    return models.table.detach()


def test_the_loss_is_the_mean_over_all_tokens_of_the_batch():
    models = Bigram()
    logprobs = models.logprobs("policy", BATCH)[0].sum() / 18  # 3 + 1 + 6 + 2 + 2 + 4 response tokens
    optimizer = MasterAdamW([([models.table], 0.1)], 0.0, kind="adamw")
    batches = [take_rows(BATCH, [0, 5]), take_rows(BATCH, [1, 2, 3, 4])]
    found = update(batches, [lambda b: sft.step(models, b)], sft.count, optimizer)
    close(found["loss"], -logprobs)


def test_two_losses_add_up():
    models, steps = Bigram(), 2
    optimizer = MasterAdamW([([models.table], 0.1)], 0.0, kind="adamw")
    both = [lambda b: sft.step(models, b)] * steps
    one = -models.logprobs("policy", BATCH)[0].sum() / 18
    close(update([BATCH], both, sft.count, optimizer)["loss"], 2 * one)


def _shifted(weight: Parameter, batch: Tensor) -> StepOutput:
    """Return a loss that is not finite when the batch is not, though its gradient always is."""
    losses = weight * 0.5 + batch
    return StepOutput(losses, torch.ones_like(losses, dtype=torch.bool), {})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_changes_no_weight(bad: float):
    weight, kept = Parameter(torch.ones(2)), list[Tensor]()
    optimizer = MasterAdamW([([weight], 0.1)], 0.0, kind="adamw")
    with pytest.raises(Diverged, match="step 2"):
        offline.train(
            lambda k, _: [torch.tensor([0.0, bad if k == 1 else 0.0])],
            OfflineAlgorithm(lambda batch: _shifted(weight, batch), lambda batch: 2.0, lambda batch: 2),
            optimizer,
            CONFIG,
            budget=enough(CONFIG.micro_batch_tokens),
            log=lambda step, metrics: None,
            keep=lambda step, state: kept.append(weight.detach().clone()),
        )
    assert len(kept) == 1
    close(weight, kept[0], EXACT)


def test_a_gradient_that_is_not_finite_changes_no_weight():
    weight = Parameter(torch.zeros(2))
    optimizer = MasterAdamW([([weight], 0.1)], 0.0, kind="adamw")

    def root(batch: Tensor) -> StepOutput:  # d sqrt(x) / dx at 0 is infinite while the loss is 0
        return StepOutput(weight.sqrt(), torch.ones(2, dtype=torch.bool), {})

    with pytest.raises(Diverged, match="gradient"):
        update([weight], [root], lambda b: 2.0, optimizer)
    close(weight, [0.0, 0.0], EXACT)


def test_what_the_mask_leaves_out_is_in_no_loss_and_no_gradient():
    weight = Parameter(torch.tensor([1.0, 1.0]))
    optimizer = MasterAdamW([([weight], 0.1)], 0.0, kind="adamw")

    def half(batch: Tensor) -> StepOutput:
        return StepOutput(weight + torch.tensor([0.0, math.nan]), torch.tensor([True, False]), {})

    metrics = update([weight], [half], lambda b: 1.0, optimizer)
    assert metrics == {"loss": 1.0, "grad_norm": 1.0}


def test_means_weigh_every_value_alike_whatever_the_parts():
    means = Means()
    means.add({"a": torch.tensor([1.0, 2, 3]), "none": torch.tensor([])})
    means.add({"a": torch.tensor(6.0)})
    assert means.result() == {"a": 3.0}
