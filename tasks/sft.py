"""Stage ``sft``: fine-tune on the chosen responses; every method starts from the result and has it as reference."""

from collections.abc import Mapping

from tasks.running.stage import Stage
from tasks.training.demonstrations import train_sft
from tasks.training.models import finish, open_models


def work(stage: Stage) -> Mapping[str, float]:
    """Train the first policy, or write an adapter that changes nothing when ``sft.enabled`` is false."""
    section = stage.params.sft
    models = open_models(stage.params)
    models.add("policy", trained=True, seed=section.seed)
    if section.enabled:
        train_sft(stage, models, section, snapshots=0)
    else:
        stage.say("sft.enabled is false: every method starts from the base model")
    return finish(stage, models, "policy", frozen={})
