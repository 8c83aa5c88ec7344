"""Stage ``mcts_dpo``: DPO on pairs of sibling steps of search trees over the policy's own answers."""

from collections.abc import Mapping

from tasks.running.stage import Stage
from tasks.training.pairs import train_dpo
from tasks.training.rollouts import open_roles
from tasks.training.tree_pairs import make_tree_pairs


def work(stage: Stage) -> Mapping[str, float]:
    """Search from the SFT adapter and train one DPO round; the reference is where it starts."""
    section = stage.params.mcts_dpo
    models = open_roles(stage.params)
    pairs, searched = make_tree_pairs(stage, models)
    trained = train_dpo(stage, models, pairs, section, starts_at_reference=True, snapshots=section.snapshots)
    return {**trained, **searched}
