"""Stage ``sft``: fine-tune on the chosen responses; every method starts from the result and has it as reference."""

from collections.abc import Mapping

from alignflow.algorithms import sft
from alignflow.loops.order import example_batches
from alignflow.models.roles import SharedBase
from alignflow.optim import OptimisationConfig
from alignflow.types import Sequences
from tasks.data.prepared import encode_demonstrations, read_demonstrations
from tasks.running.stage import Stage
from tasks.training.models import config_of, finish, open_models
from tasks.training.offline import train_offline


def work(stage: Stage) -> Mapping[str, float]:
    """Train the first policy, or write an adapter that changes nothing when ``sft.enabled`` is false."""
    models = open_models(stage.params)
    models.add("policy", trained=True, seed=stage.params.sft.seed)
    if stage.params.sft.enabled:
        _train(stage, models)
    else:
        stage.say("sft.enabled is false: every method starts from the base model")
    return finish(stage, models, "policy", frozen={})


def _train(stage: Stage, models: SharedBase) -> None:
    config = config_of(stage.params.sft, OptimisationConfig)
    examples = encode_demonstrations(models.base.tokenizer, read_demonstrations("train"))

    def batches(step: int, budget: int) -> list[Sequences]:
        return example_batches(examples, config, step, budget, models.base.device)

    train_offline(stage, models, "policy", sft.build(models), batches, config)
