"""One training on stored data, as every stage that runs one shares it."""

from collections.abc import Callable, Sequence

from alignflow.checkpoint import Keep
from alignflow.loops import offline
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig, adamw
from alignflow.types import Batch, OfflineAlgorithm
from tasks.running.stage import Stage


def train_offline(
    stage: Stage,
    models: SharedBase,
    role: str,
    algorithm: OfflineAlgorithm[Batch],
    batches: Callable[[int, int], Sequence[Batch]],
    config: OptimisationConfig,
    *,
    keep: Keep | None = None,
) -> None:
    """Train a role on stored data, from the stage's checkpoint if there is one.

    Args:
        stage: the running stage.
        models: with all roles that the algorithm asks for.
        role: the one to train.
        algorithm: bound to models and settings.
        batches: micro-batches of an optimiser step (from 0) within a budget of tokens.
        config: steps, schedule and micro-batch size.
        keep: called after every step; the stage's own by default.
    """
    stage.total_steps = config.steps
    optimizer = adamw(
        models,
        {role: config.learning_rate},
        weight_decay=config.weight_decay,
        kind=stage.params.memory.optimizer,
    )
    offline.train(
        batches,
        algorithm,
        optimizer,
        config,
        log=stage.log,
        budget=stage.budget("updates", config.micro_batch_tokens),
        keep=keep or stage.keep,
        resume=stage.resume,
    )
