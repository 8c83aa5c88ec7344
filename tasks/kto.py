"""Stage ``kto``: learn from single responses, each desirable or not; no pairs are needed."""

from collections.abc import Mapping

from tasks.paths import SFT
from tasks.running.stage import Stage
from tasks.training.models import open_models
from tasks.training.unpaired import read_labelled, train_kto


def work(stage: Stage) -> Mapping[str, float]:
    """Train a policy from the SFT adapter; the reference is a frozen copy of it."""
    section = stage.params.kto
    models = open_models(stage.params)
    models.add("reference", start=SFT)
    models.add("policy", start=SFT, trained=True)
    return train_kto(stage, models, read_labelled(models.base.tokenizer), section, snapshots=section.snapshots)
