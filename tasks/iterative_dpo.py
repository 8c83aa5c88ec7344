"""Stage ``iterative_dpo@round-i``: sample from the current model, pair best with worst, one DPO round."""

from collections.abc import Mapping
from pathlib import Path

from tasks.paths import REWARD_MODEL, SFT
from tasks.running.stage import Stage
from tasks.training.models import open_models
from tasks.training.pairs import train_dpo
from tasks.training.shard_pairs import make_pairs


def work(stage: Stage) -> Mapping[str, float]:
    """Run one round; its pairs are written with their lineage, the dropped ones too."""
    section = stage.params.iterative_dpo
    previous = Path(section.rounds[stage.name.partition("@")[2]].previous)
    reference = previous if section.reference == "previous" else SFT
    models = open_models(stage.params)
    models.add("policy", start=previous, trained=True)
    models.add("reference", start=reference)
    models.add("reward_model", start=REWARD_MODEL)
    pairs, sampled = make_pairs(stage, models)
    trained = train_dpo(stage, models, pairs, section, starts_at_reference=reference == previous, snapshots=0)
    return {**trained, **sampled}
