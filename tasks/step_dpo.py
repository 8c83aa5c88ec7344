"""Stage ``step_dpo``: DPO on pairs of steps, the policy's own first errors against its own corrections."""

from collections.abc import Mapping

from tasks.running.stage import Stage
from tasks.training.pairs import train_dpo
from tasks.training.rollouts import open_roles
from tasks.training.step_pairs import make_step_pairs


def work(stage: Stage) -> Mapping[str, float]:
    """Sample from the SFT adapter, look for errors, and train one DPO round; the reference is where it starts."""
    section = stage.params.step_dpo
    models = open_roles(stage.params)
    pairs, sampled = make_step_pairs(stage, models)
    trained = train_dpo(stage, models, pairs, section, starts_at_reference=True, snapshots=section.snapshots)
    return {**trained, **sampled}
