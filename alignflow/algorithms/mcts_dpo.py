"""MCTS-DPO: DPO on pairs of sibling steps from a search tree over the policy's own answers.

select  argmax Q(s,a) + c·p(a|s)·√N(s) / (1 + N(s,a)),  p = exp(Σ log π / |a|^λ)     (Xie et al. 2024, arXiv:2405.00451,
                                                                                     section 2.1; p as in their code)
back up N ← N + 1, W ← W + reward of the whole answer; Q = W / N
pairs   at each node of the walk to the most visited child: the child of highest Q against that of lowest Q
loss    −(1−α)·log σ(βh) − α·log σ(−βh),  α = N_l / (N_w + N_l)                      (section 2.2)

The loss is that of ``dpo`` with a label smoothing of each pair; here is what is particular: tree and pairs. A leaf is
expanded by continuations to the end of the answer, so every sampled token earns a reward, and children that are
expanded later already hold some of their solutions.

Departures from the paper. A value is the mean reward of whole answers (γ = 1, no self-evaluation). Departures from the
official code: rejected is the sibling of lowest Q, where the code takes a random one; N of the root grows by 1 a
simulation, there by 2; an unvisited node weighs nothing, there 1; α ≥ ½ gives no pair, there α is cut at ½; the walk
goes by visits alone.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from alignflow.types import Step


@dataclass(frozen=True)
class MCTSDPOConfig:
    """Keys of the search and of the choice of pairs."""

    simulations: int
    first_breadth: int
    breadth: int
    depth: int
    c_puct: float
    length_exponent: float
    min_margin: float
    min_visits: int
    pairs_from: str
    pairs_per_prompt: int
    only_right: bool
    right_from: float
    smoothing: str


class Ending(NamedTuple):
    """The end of a sampled answer, in steps, with the reward of the whole answer."""

    steps: tuple[Step, ...]
    log_probs: tuple[float, ...]
    """Σ log π of each step's tokens."""
    reward: float


@dataclass(eq=False)
class TreeNode:
    """An answer so far, and what is known of how it ends."""

    step: Step = ()
    log_prob: float = 0.0
    parent: "TreeNode | None" = None
    depth: int = 0
    children: list["TreeNode"] = field(default_factory=list)
    expanded: bool = False
    visits: int = 0
    total: float = 0.0
    """Sum of rewards over the visits."""
    solutions: int = 0
    """Sampled answers through this node."""
    stored: list[Ending] = field(default_factory=list)
    """Ends that are not yet dealt out to children."""
    terminal: float | None = None
    """Reward, where the answer ends here."""

    @property
    def value(self) -> float:
        """Q, the mean reward over the visits; 0 without any."""
        return self.total / self.visits if self.visits else 0.0

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps from the root to here."""
        return (*self.parent.steps, self.step) if self.parent else ()


def puct(node: TreeNode, config: MCTSDPOConfig) -> float:
    """Return what selection maximises among siblings."""
    assert node.parent is not None
    prior = math.exp(node.log_prob / len(node.step) ** config.length_exponent)
    return node.value + config.c_puct * prior * math.sqrt(node.parent.visits) / (1 + node.visits)


def simulate(root: TreeNode, config: MCTSDPOConfig) -> TreeNode | None:
    """Select a leaf once. Return it if it wants samples; count what is known of it again if not, and return None."""
    node = root
    while node.expanded and node.terminal is None:
        node = max(node.children, key=lambda child: puct(child, config))  # of equal ones the first
    if node.terminal is not None:
        _back_up(node, node.terminal)
    elif node.depth >= config.depth:
        _back_up(node, sum(one.reward for one in node.stored) / len(node.stored))
    else:
        return node
    return None


def wanted(leaf: TreeNode, config: MCTSDPOConfig) -> int:
    """Return how many answers to sample from a leaf; those that it holds already count."""
    return max(1, (config.breadth if leaf.parent else config.first_breadth) - len(leaf.stored))


def grow(leaf: TreeNode, samples: Sequence[Ending]) -> None:
    """Expand a leaf: its stored and new ends make a child for each different next step, in order of occurrence."""
    for one in samples:
        _back_up(leaf, one.reward)
        node: TreeNode | None = leaf
        while node:
            node.solutions += 1
            node = node.parent
    children: dict[Step, TreeNode] = {}
    for one in (*leaf.stored, *samples):
        child = children.setdefault(
            one.steps[0], TreeNode(one.steps[0], one.log_probs[0], parent=leaf, depth=leaf.depth + 1)
        )
        child.visits += 1
        child.solutions += 1
        child.total += one.reward
        if len(one.steps) == 1:
            child.terminal = one.reward
        else:
            child.stored.append(Ending(one.steps[1:], one.log_probs[1:], one.reward))
    leaf.children, leaf.stored, leaf.expanded = list(children.values()), [], bool(children)


def _back_up(leaf: TreeNode, reward: float) -> None:
    node: TreeNode | None = leaf
    while node:
        node.visits += 1
        node.total += reward
        node = node.parent


def nodes(root: TreeNode) -> Iterator[TreeNode]:
    """Yield a tree's nodes, parents first."""
    yield root
    for child in root.children:
        yield from nodes(child)


def walk(root: TreeNode) -> list[TreeNode]:
    """Return the nodes from the root along the most visited children, the best of equally visited ones."""
    path = [root]
    while path[-1].children:
        path.append(max(path[-1].children, key=lambda child: (child.visits, child.value)))
    return path


class Siblings(NamedTuple):
    """Two steps after the same prefix."""

    chosen: TreeNode
    rejected: TreeNode
    smoothing: float | None
    """α of the pair; None: that of the settings."""

    @property
    def margin(self) -> float:
        """The difference of the two values."""
        return self.chosen.value - self.rejected.value


def pairs_of(
    root: TreeNode, config: MCTSDPOConfig, *, whole: Callable[[Step], bool], text: Callable[[Step], str]
) -> list[Siblings] | str:
    """Return the pairs of a tree, at most ``pairs_per_prompt``, or why there are none.

    Args:
        root: of the tree.
        config: keys of the choice.
        whole: whether a step has an end; one that was cut off is never chosen or rejected.
        text: of a step.
    """
    path = walk(root)
    if config.only_right and path[-1].value < config.right_from:
        return "the walk does not end right"
    found: list[Siblings] = []
    reasons: list[str] = []
    for node in path if config.pairs_from == "walk" else nodes(root):
        if node.children:
            pair = _pair(node, config, whole, text)
            found += [pair] if isinstance(pair, Siblings) else []
            reasons += [pair] if isinstance(pair, str) else []
    if not found:
        return reasons[0] if reasons else "no step was expanded"
    if config.pairs_from == "all":
        found.sort(key=lambda pair: -pair.margin)
    return found[: config.pairs_per_prompt]


def _pair(
    node: TreeNode, config: MCTSDPOConfig, whole: Callable[[Step], bool], text: Callable[[Step], str]
) -> Siblings | str:
    children = [child for child in node.children if whole(child.step)]
    if len(children) < 2:
        return "no two steps to choose from"
    best = max(children, key=lambda child: (child.value, child.visits))
    worst = min(children, key=lambda child: (child.value, -child.visits))
    margin = best.value - worst.value
    if margin <= 0 or margin < config.min_margin:
        return "tie" if margin <= 0 else "margin too small"
    if min(best.visits, worst.visits) < config.min_visits:
        return "too few visits"
    if text(best.step).strip() == text(worst.step).strip():
        return "equal texts"
    if config.smoothing != "visits":
        return Siblings(best, worst, None)
    smoothing = worst.visits / (best.visits + worst.visits)
    return Siblings(best, worst, smoothing) if smoothing < 0.5 else "too uncertain"  # it would pull the two together
