"""RLOO at the level of responses against TRL 1.16's own trainer: same tiny model, adapters and rows.

TRL's code computes each expected number, as in ``test_trl``: a real trainer takes our responses in place of its own
samples, takes its rewards and advantages, runs its model and its loss. TRL has no level of tokens; that one is checked
against its other level, loops and the exact gradient in ``test_rloo``.

Differences by design, each asserted below but for the last, of a metric:

| in TRL                                         | here                             | why
|------------------------------------------------|----------------------------------|------------------------------
| unscored rows stay in the denominator          | they leave                       | a mean is over what counts
| masked rows stay in the loss, as -A            | they leave                       | they have no gradient
| masked rows have no KL in their reward         | they have it                     | a baseline has whole rewards
| log-ratios are free                            | clamped to ±20                   | one response could overflow
| the KL is k1                                   | kl_estimator                     | its k1 is compared here
| clip ratios count clips that cut a gradient    | clip_fraction counts all outside | it measures distance
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignflow.algorithms import rloo
from alignflow.data.collate import collate, take_rows
from alignflow.types import Rollouts
from tests.close import close
from tests.oracle import test_trl as shared
from tests.oracle.sides import Result, agree, open_ours, our_result, their_result, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own, of deprecated names
ROWS, SCORES, CUT, GROUP, TEMPERATURE = shared.ROWS, shared.SCORES, shared.CUT, shared.GROUP, shared.TEMPERATURE


class Case:
    """One batch of given responses, sampled by both sides' policies, which then moved by the same step."""

    def __init__(self, folder: Path, scores: Sequence[float | None] = SCORES, **keys: Any) -> None:
        base = rloo.RLOOConfig(
            kl_coef=0.2, kl_estimator="k1", clip_range=0.2, group_size=GROUP, level="sequence", mask_truncated=False
        )
        self.config = replace(base, **keys)
        self.models = open_ours(folder)
        self.trainer = trainer_of(
            "RLOO",
            folder,
            {
                "beta": self.config.kl_coef,
                "epsilon": self.config.clip_range,
                "mask_truncated_completions": self.config.mask_truncated,
                "temperature": TEMPERATURE,
                "max_completion_length": shared.LONGEST,
                "per_device_train_batch_size": len(ROWS),
                "num_generations": GROUP,
            },
            reward_funcs=[lambda **_: list(scores)],
        )
        self.trainer._generate = self._given
        self.theirs = self.trainer._generate_and_score_completions([{"prompt": "a"}] * len(ROWS))
        self.rollouts = Rollouts(
            sequences=collate(ROWS),
            scores=torch.tensor([s or 0.0 for s in scores]),
            scored=torch.tensor([s is not None for s in scores]),
            truncated=torch.arange(len(ROWS)) == CUT,
        )
        with torch.no_grad():
            self.old, self.ref = (
                self.models.logprobs(role, self.rollouts.sequences, TEMPERATURE)[0] for role in ("policy", "reference")
            )
        self.ours, self.metrics = rloo.prepare(self.rollouts, self.old, self.ref, self.config)
        self._move()

    @staticmethod
    def _given(prompts: Sequence[Any]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        assert len(prompts) == len(ROWS)
        return [list(r.prompt) for r in ROWS], [list(r.response) for r in ROWS], ["b"] * len(ROWS)

    def _move(self) -> None:
        """Step away from the policy that sampled, so far that some ratios leave the clip range."""
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for name, parameter in self.models._peft.named_parameters():
                if ".policy." in name:
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
                    self.trainer.model.get_parameter(name.replace(".policy.", ".default.")).copy_(parameter)

    def our_rloo(self) -> Result:
        """Run our update on the rows that count, two a micro-batch."""
        rows = self.ours.sequences.response_mask.any(1).nonzero()[:, 0].tolist()
        return our_result(
            self.models,
            [take_rows(self.ours, rows[i : i + 2]) for i in range(0, len(rows), 2)],
            lambda batch: rloo.step(self.models, batch, self.config, temperature=TEMPERATURE),
            lambda batch: rloo.count(batch, self.config),
        )

    def their_rloo(self) -> Result:
        return their_result(self.trainer, [self.theirs])


@pytest.mark.parametrize("kl_coef", [0.0, 0.2])
def test_rloo_agrees(folder: Path, kl_coef: float):
    """With ratios of responses beyond the clip range on both sides, at the sampling temperature."""
    case = Case(folder, kl_coef=kl_coef)
    close(case.ours.advantages, case.theirs["advantages"])
    close(case.ours.old_logprobs.sum(1), case.theirs["old_logps"])
    agree(case.our_rloo(), case.their_rloo())
    metrics = case.trainer._metrics["train"]
    assert metrics["clip_ratio/low_mean"][-1] > 0
    assert metrics["clip_ratio/high_mean"][-1] > 0
    if kl_coef:
        tokens = sum(shared.LENGTHS)
        close(case.metrics["kl/reference"].sum() / tokens, metrics["kl"][-1])
        assert abs(metrics["kl"][-1]) > 1e-3


@pytest.mark.parametrize(
    ("scores", "counted"),
    [
        ([1.0, None, *SCORES[2:]], 5),
        ([1.0, None, 0.0, None, None, 0.4], 3),  # the last has no other: advantage 0, in both denominators
    ],
)
def test_unscored_responses_leave_our_denominator_and_stay_in_that_of_trl(
    folder: Path, scores: list[float | None], counted: int
):
    case = Case(folder, scores)
    close(case.ours.advantages, case.theirs["advantages"])
    agree(case.our_rloo(), case.their_rloo(), 6 / counted)


def test_masked_responses_leave_our_loss_and_keep_their_kl(folder: Path):
    """TRL's advantages have a baseline in which the masked response earned its score without a penalty."""
    case = Case(folder, mask_truncated=True)
    penalty = 0.2 * float((case.old - case.ref)[CUT].sum())
    assert abs(penalty) > 0.01
    first, last = CUT - CUT % GROUP, CUT - CUT % GROUP + GROUP
    theirs = case.theirs["advantages"]
    shift = torch.zeros(6)
    shift[first:last] = penalty / (GROUP - 1)
    shift[CUT] = 0.0
    ours = case.ours.advantages
    others = torch.arange(6) != CUT
    close(ours[others], (theirs + shift)[others])
    case.theirs["advantages"] = torch.where(others, theirs + shift, theirs)
    loss, gradients = case.their_rloo()
    without = loss + float(theirs[CUT]) / 6  # TRL's ratio of no tokens is 1
    agree(case.our_rloo(), (without, gradients), 6 / 5)


def test_log_ratios_are_clamped_where_trl_lets_one_response_overflow(folder: Path):
    """A response a hundred nats likelier than when sampled, at a loss (A < 0) that no clip bounds."""
    case = Case(folder, kl_coef=0.0)
    row = int(case.ours.advantages.argmin())
    first = int(case.ours.sequences.response_mask[row, 1:].int().argmax())
    case.ours.old_logprobs[row, first] -= 100.0
    case.theirs["old_logps"][row] -= 100.0
    assert math.isinf(float(case.trainer.compute_loss(case.trainer.model, case.theirs)))
    close(case.our_rloo()[0] / (-float(case.ours.advantages[row]) * math.exp(20.0) / len(ROWS)), 1.0)


def test_k3_is_another_penalty(folder: Path):
    case = Case(folder, kl_estimator="k3")
    assert float((case.ours.advantages - case.theirs["advantages"]).abs().max()) > 0.01
