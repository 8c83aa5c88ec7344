"""One DPO training on pairs, as the stages ``dpo`` and ``iterative_dpo`` share it."""

from collections.abc import Sequence

import torch

from alignflow.algorithms import dpo
from alignflow.data.collate import collate_pairs
from alignflow.loops.by_rows import by_rows
from alignflow.loops.order import pair_batches, rows_of_step
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.ops import masked_sum
from alignflow.optim import OptimisationConfig
from alignflow.types import Pair, Sequences
from tasks.params.sections import Dpo, IterativeDpo
from tasks.running.stage import Stage
from tasks.training import reference_logps
from tasks.training.models import config_of, finish, keep_snapshots
from tasks.training.offline import train_offline

START_DIFFERENCE = 0.01  # nats a response; the same weights on the same rows give the same numbers


def train_dpo(
    stage: Stage,
    models: SharedBase,
    pairs: Sequence[Pair],
    section: Dpo | IterativeDpo,
    *,
    starts_at_reference: bool,
    snapshots: int,
) -> dict[str, float]:
    """Train the policy on pairs against the reference, both already in place; save and return metrics.

    Args:
        stage: the running stage.
        models: with the roles ``policy`` and ``reference``.
        pairs: to train on.
        section: settings.
        starts_at_reference: whether both roles should answer alike before the first update; checked.
        snapshots: policies to keep along the way.

    Raises:
        NotAtReference: they should and do not.
    """
    config = config_of(section, OptimisationConfig)
    loss = config_of(section, dpo.DPOConfig)
    frozen = {"reference": models.fingerprint("reference")}
    # a run shorter than an epoch sees only some of the pairs: the reference need not look at the others
    used = {i for step in range(max(1, config.steps)) for i in rows_of_step(len(pairs), config, step)}
    pairs = [pair for i, pair in enumerate(pairs) if i in used]
    if starts_at_reference:
        _check_start(models, pairs[0], stage)
    ref_logps = torch.zeros(2, len(pairs), device=models.base.device)
    if loss.uses_reference:  # once for all steps, and for all runs that differ in nothing that it depends on
        budget = Budget(config.micro_batch_tokens, stage.announce)
        ref_logps = reference_logps.kept(
            reference_logps.key_of(models, pairs, budget.size),
            lambda: _logps(models, "reference", pairs, budget),
            pairs=len(pairs),
            say=stage.say,
        ).to(models.base.device)

    def batches(step: int, budget: int) -> list[dpo.PairBatch]:
        return [
            dpo.PairBatch(batch, torch.cat([ref_logps[0, rows], ref_logps[1, rows]]))
            for rows, batch in pair_batches(pairs, config, step, budget, models.base.device)
        ]

    stage.total_steps = config.steps  # the snapshots' places follow from it
    keep = keep_snapshots(stage, models, snapshots)
    train_offline(stage, models, "policy", dpo.build(models, loss), batches, config, keep=keep)
    return finish(stage, models, "policy", frozen=frozen)


def _logps(models: SharedBase, role: str, pairs: Sequence[Pair], budget: Budget) -> torch.Tensor:
    """Return a role's summed response log-probs of chosen and rejected responses. (2, pairs)"""

    def logps(batch: Sequences) -> torch.Tensor:
        return masked_sum(models.logprobs(role, batch)[0], batch.response_mask[:, 1:].to(models.base.device))

    return by_rows(logps, collate_pairs(pairs), budget).to(models.base.device).view(2, len(pairs))


def _check_start(models: SharedBase, pair: Pair, stage: Stage) -> None:
    mine, other = (_logps(models, role, [pair], Budget(1, stage.announce)) for role in ("policy", "reference"))
    difference = float((mine - other).abs().max())
    if not difference <= START_DIFFERENCE:
        raise NotAtReference(
            f"the policy should start at its reference, but their log-probs of a response differ by {difference:.3g} "
            "nats; they were loaded from different adapters"
        )


class NotAtReference(ValueError):
    """Policy and reference differ before the first update: a defect, never a setting."""
