"""Stage ``dpo``: direct preference optimisation on the stored pairs."""

from collections.abc import Mapping

from tasks.data.prepared import encode_pairs, read_pairs
from tasks.paths import SFT
from tasks.running.stage import Stage
from tasks.training.models import open_models
from tasks.training.pairs import train_dpo


def work(stage: Stage) -> Mapping[str, float]:
    """Train a policy from the SFT adapter; the reference is a frozen copy of it."""
    section = stage.params.dpo
    models = open_models(stage.params)
    models.add("reference", start=SFT)
    models.add("policy", start=SFT, trained=True)
    pairs = encode_pairs(models.base.tokenizer, read_pairs("train"))
    return train_dpo(stage, models, pairs, section, starts_at_reference=True, snapshots=section.snapshots)
