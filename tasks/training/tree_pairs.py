"""The step pairs of MCTS-DPO: siblings of search trees, one tree a prompt, all grown in lockstep."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from statistics import fmean
from typing import Any

from alignflow.algorithms.mcts_dpo import (
    Ending,
    MCTSDPOConfig,
    Siblings,
    TreeNode,
    grow,
    nodes,
    pairs_of,
    simulate,
    wanted,
)
from alignflow.models.roles import SharedBase
from alignflow.steps import Cutter, cutter
from alignflow.types import Pair, Step
from tasks.paths import SFT
from tasks.running.stage import Stage
from tasks.training.continuations import Begun, Continuation, draw_states, extend, step_texts
from tasks.training.ends import eos_ids
from tasks.training.lineage import origin, pairs_of_steps
from tasks.training.models import config_of
from tasks.training.sampling import settle


def make_tree_pairs(stage: Stage, models: SharedBase) -> tuple[list[Pair], dict[str, float]]:
    """Make the pairs and write them with their lineage.

    They are part of the checkpoint: a resumed stage, which may have another budget of memory, must not sample others.

    Raises:
        NoPairs: no prompt gave a pair.
    """
    section = stage.params.mcts_dpo
    found = stage.once("pairs", lambda: _search(stage, models))
    bars = f"mcts_dpo.min_margin is {section.min_margin} and mcts_dpo.min_visits is {section.min_visits}"
    pairs, counts = pairs_of_steps(stage, models, found["lineage"], found["rewards"], bars)
    return pairs, {**counts, **found["figures"]}


def _search(stage: Stage, models: SharedBase) -> dict[str, Any]:
    """Grow a tree for each prompt, one call of the sampler for all of them at a time, and choose pairs."""
    section, config = stage.params.mcts_dpo, config_of(stage.params.mcts_dpo, MCTSDPOConfig)
    cut = cutter(models.base.tokenizer, section.delimiter, eos_ids(models))
    states = draw_states(stage, section.prompts, section.seed)
    settle(stage, models)
    budget = stage.budget("passes", section.micro_batch_tokens)
    roots, left = [TreeNode() for _ in states], [config.simulations] * len(states)
    drawn: list[Continuation] = []
    calls = 0
    while leaves := _leaves(roots, left, config):
        asked = [Begun(states[i].row, leaf.steps) for i, leaf in leaves for _ in range(wanted(leaf, config))]
        stage.say(f"samples {len(asked)} ends of answers in {len(leaves)} trees")
        got = extend(models, stage.params, asked, seed=section.seed * 1000 + calls, budget=budget)
        drawn.extend(got)
        ends, calls = iter(got), calls + 1
        for _, leaf in leaves:
            mine = [_ending(cut, next(ends)) for _ in range(wanted(leaf, config))]
            grow(leaf, [one for one in mine if one is not None])
    lines = [
        line for state, root in zip(states, roots, strict=True) for line in _lines(models, config, cut, state, root)
    ]
    kept = [line for line in lines if line["dropped"] is None]
    stage.say(f"{len(kept)} pairs of steps from {len(roots)} trees")
    rewards = [one.reward.total for one in drawn if one.reward.total is not None]
    solved = [any((node.terminal or 0.0) >= config.right_from for node in nodes(root)) for root in roots]
    common = origin(stage, models, start=str(SFT), seed=section.seed * 1000)
    smoothings = [line["smoothing"] for line in kept if line["smoothing"] is not None]
    return {
        "lineage": [{**line, **common} for line in lines],
        "rewards": rewards,
        "figures": {
            "reward/mean": fmean(rewards),
            "truncated_fraction": fmean(one.truncated for one in drawn),
            "solved_fraction": fmean(solved),
            "sampled_tokens": float(sum(len(one.tokens) for one in drawn)),
            "tree_nodes/mean": fmean(len(list(nodes(root))) for root in roots),
            **({"depth/mean": fmean(line["depth"] for line in kept)} if kept else {}),
            **({"smoothing/mean": fmean(smoothings)} if smoothings else {}),
        },
    }


def _leaves(roots: Sequence[TreeNode], left: list[int], config: MCTSDPOConfig) -> list[tuple[int, TreeNode]]:
    """Simulate in each tree until it wants samples or has no simulations left; return the leaves that want some."""
    found = []
    for place, root in enumerate(roots):
        leaf = None
        while leaf is None and left[place]:
            left[place] -= 1
            leaf = simulate(root, config)
        if leaf is not None:
            found.append((place, leaf))
    return found


def _ending(cut: Cutter, one: Continuation) -> Ending | None:
    if one.reward.total is None:
        return None
    steps = cut.cut(one.tokens)
    places = [0, *accumulate(map(len, steps))]
    sums = tuple(sum(one.logprobs[start:stop]) for start, stop in pairwise(places))
    return Ending(tuple(steps), sums, one.reward.total)


def _lines(
    models: SharedBase, config: MCTSDPOConfig, cut: Cutter, state: Begun, root: TreeNode
) -> list[dict[str, Any]]:
    """Return a line for each pair of a tree, or one that says why there is none."""

    def text(step: Step) -> str:
        return step_texts(models, [step])[0]

    found = pairs_of(root, config, whole=cut.whole, text=text)
    about = {
        "method": "mcts_dpo",
        **{key: state.row[key] for key in ("prompt_id", "messages", "prompt")},
        "tree": {"nodes": len(list(nodes(root))), "solutions": root.solutions, "visits": root.visits, "q": root.value},
    }
    if isinstance(found, str):
        return [{**about, "dropped": found}]
    return [{**about, "dropped": None, **_pair(pair, text, models)} for pair in found]


def _pair(pair: Siblings, text: Any, models: SharedBase) -> dict[str, Any]:
    both, parent = (pair.chosen, pair.rejected), pair.chosen.parent
    assert parent is not None
    return {
        "prefix": "".join(step_texts(models, parent.steps)),
        "prefix_ids": [token for step in parent.steps for token in step],
        "depth": pair.chosen.depth,
        "chosen": text(pair.chosen.step),
        "rejected": text(pair.rejected.step),
        "chosen_ids": pair.chosen.step,
        "rejected_ids": pair.rejected.step,
        "q": [node.value for node in both],
        "visits": [node.visits for node in both],
        "solutions": [node.solutions for node in both],
        "smoothing": pair.smoothing,
        "siblings": [{"text": text(node.step), "q": node.value, "visits": node.visits} for node in parent.children],
    }
