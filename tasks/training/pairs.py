"""One DPO training on pairs, as the stages ``dpo``, ``iterative_dpo``, ``step_dpo`` and ``mcts_dpo`` share it."""

from collections.abc import Sequence

import torch

from alignflow.algorithms import dpo
from alignflow.loops.order import pair_batches, rows_of_step
from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig
from alignflow.types import Example, Pair
from tasks.params.sections import Dpo, IterativeDpo, MctsDpo, StepDpo
from tasks.running.stage import Stage
from tasks.training.models import config_of, finish, keep_snapshots
from tasks.training.offline import train_offline
from tasks.training.reference_logps import check_start, reference_logps


def train_dpo(
    stage: Stage,
    models: SharedBase,
    pairs: Sequence[Pair],
    section: Dpo | IterativeDpo | StepDpo | MctsDpo,
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
        check_start(models, _examples(pairs[:1]), Budget(1, stage.announce))
    ref_logps = torch.zeros(2, len(pairs), device=models.base.device)
    smoothings = None
    if any(pair.smoothing is not None for pair in pairs):
        each = [loss.label_smoothing if pair.smoothing is None else pair.smoothing for pair in pairs]
        smoothings = torch.tensor(each, device=models.base.device)
    wins = torch.tensor([pair.wins for pair in pairs], device=models.base.device).T
    if loss.uses_reference:  # once for all steps, and for all runs that differ in nothing that it depends on
        budget = stage.budget("passes", config.micro_batch_tokens)
        found = stage.once(
            "reference log-probs", lambda: reference_logps(models, _examples(pairs), budget, say=stage.say)
        )
        ref_logps = found.to(models.base.device).view(2, len(pairs))

    def batches(step: int, budget: int) -> list[dpo.PairBatch]:
        return [
            dpo.PairBatch(
                batch,
                ref_logps[:, rows].flatten(),
                wins[:, rows].flatten(),
                None if smoothings is None else smoothings[rows],
            )
            for rows, batch in pair_batches(pairs, config, step, budget, models.base.device)
        ]

    stage.total_steps = config.steps  # the snapshots' places follow from it
    keep = keep_snapshots(stage, models, snapshots)
    train_offline(stage, models, "policy", dpo.build(models, loss), batches, config, keep=keep)
    return finish(stage, models, "policy", frozen=frozen)


def _examples(pairs: Sequence[Pair]) -> list[Example]:
    """Return all chosen rows, then all rejected rows. 2B rows"""
    return [Example(p.prompt, p.chosen) for p in pairs] + [Example(p.prompt, p.rejected) for p in pairs]
