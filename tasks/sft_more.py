"""Stage ``sft_more``: a control. Is learning from preferences better than as many more steps of imitation?"""

from collections.abc import Mapping

from tasks.paths import SFT
from tasks.running.stage import Stage
from tasks.training.demonstrations import train_sft
from tasks.training.models import finish, open_models


def work(stage: Stage) -> Mapping[str, float]:
    """Go on with SFT on the chosen responses, from the SFT adapter."""
    section = stage.params.sft_more
    models = open_models(stage.params)
    models.add("policy", start=SFT, trained=True)
    train_sft(stage, models, section, snapshots=section.snapshots)
    return finish(stage, models, "policy", frozen={})
