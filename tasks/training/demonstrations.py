"""One run of supervised fine-tuning on chosen responses, as the stages ``sft`` and ``sft_more`` share it."""

from alignflow.algorithms import sft
from alignflow.loops.order import example_batches
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig
from alignflow.types import Sequences
from tasks.data.prepared import encode_demonstrations, read_demonstrations
from tasks.params.sections import Optimisation
from tasks.running.stage import Stage
from tasks.training.models import config_of, keep_snapshots
from tasks.training.offline import train_offline


def train_sft(stage: Stage, models: SharedBase, section: Optimisation, *, snapshots: int) -> None:
    """Train the role ``policy`` on the chosen responses of the training side.

    Args:
        stage: the running stage.
        models: with the role ``policy``.
        section: settings.
        snapshots: policies to keep along the way.
    """
    config = config_of(section, OptimisationConfig)
    examples = encode_demonstrations(models.base.tokenizer, read_demonstrations("train"))

    def batches(step: int, budget: int) -> list[Sequences]:
        return example_batches(examples, config, step, budget, models.base.device)

    stage.total_steps = config.steps  # the snapshots' places follow from it
    keep = keep_snapshots(stage, models, snapshots)
    train_offline(stage, models, "policy", sft.build(models), batches, config, keep=keep)
