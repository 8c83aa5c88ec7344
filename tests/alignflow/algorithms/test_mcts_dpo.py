"""MCTS-DPO: the search tree and its pairs, by hand, by enumeration and by what must always hold."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignflow.algorithms.dpo import dpo_loss
from alignflow.algorithms.mcts_dpo import (
    Ending,
    MCTSDPOConfig,
    Siblings,
    TreeNode,
    grow,
    nodes,
    pairs_of,
    puct,
    simulate,
    walk,
    wanted,
)
from alignflow.types import Step
from tests import reference
from tests.close import FLOAT64, close

A, B, C = (1,), (2,), (3,)
CONFIG = MCTSDPOConfig(4, 2, 2, 8, 1.0, 1.25, 0.1, 1, "walk", 8, False, 1.0, "visits")
PROBABILITY = {(): {A: 0.5, B: 0.5}, (A,): {A: 0.4, B: 0.6}, (B,): {A: 0.7, B: 0.3}}
Sample = Callable[[TreeNode], Ending]


def ending(*steps: Step, after: tuple[Step, ...] = (), reward: float = 0.0) -> Ending:
    places = [(*after, *steps[:k]) for k in range(len(steps))]
    return Ending(steps, tuple(math.log(PROBABILITY[p][s]) for p, s in zip(places, steps, strict=True)), reward)


def searched(config: MCTSDPOConfig, sample: Sample, simulations: int) -> TreeNode:
    root = TreeNode()
    for _ in range(simulations):
        leaf = simulate(root, config)
        if leaf is not None:
            grow(leaf, [sample(leaf) for _ in range(wanted(leaf, config))])
    return root


def counted(node: TreeNode) -> tuple[int, float]:
    return node.visits, node.total


def pairs(root: TreeNode, config: MCTSDPOConfig = CONFIG) -> list[Siblings] | str:
    return pairs_of(root, config, whole=lambda step: step != C, text=str)


def test_the_worked_example_number_by_number():
    """Two steps of one token, reward 1 for aa. Samples: aa and bb from the root, then ab from a."""
    given_ = iter([ending(A, A, reward=1.0), ending(B, B), ending(B, after=(A,))])
    root = TreeNode()
    seen, scores = [], []
    for _ in range(4):
        if root.expanded:
            scores.append([puct(child, CONFIG) for child in root.children])
            scores += (
                [[puct(child, CONFIG) for child in root.children[0].children]] if root.children[0].expanded else []
            )
        leaf = simulate(root, CONFIG)
        if leaf is not None:
            grow(leaf, [next(given_) for _ in range(wanted(leaf, CONFIG))])
        a, b = root.children
        seen.append([counted(root), counted(a), counted(b), *map(counted, a.children)])
    assert seen == [
        [(2, 1), (1, 1), (1, 0)],
        [(3, 1), (2, 1), (1, 0), (1, 1), (1, 0)],
        [(4, 2), (3, 2), (1, 0), (2, 2), (1, 0)],
        [(5, 3), (4, 3), (1, 0), (3, 3), (1, 0)],
    ]
    close(scores[0], [1.353553, 0.353553], 1e-6)
    close(scores[1:3], [[0.788675, 0.433013], [1.282843, 0.424264]], 1e-6)
    close(scores[3:], [[0.916667, 0.500000], [1.230940, 0.519615]], 1e-6)
    assert next(given_, None) is None  # three solutions in all
    assert root.solutions == 3
    found = pairs(root)
    assert isinstance(found, list)
    assert [(p.chosen.steps, p.rejected.steps, p.smoothing) for p in found] == [
        ((A,), (B,), 1 / 5),
        ((A, A), (A, B), 1 / 4),
    ]


def test_the_loss_of_the_example_s_first_pair():
    """Beta 0.1, h = 2, alpha 1/5: 0.638139; least where beta h = ln 4. Alphas of swapped siblings add to 1."""
    h = torch.tensor([2.0, math.log(4) / 0.1], dtype=torch.float64, requires_grad=True)
    zero, alpha = torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.2, dtype=torch.float64)
    losses = dpo_loss(h, zero, zero, zero, beta=0.1, loss="sigmoid", label_smoothing=alpha)
    close(losses[0], 0.638139, 1e-6)
    losses.sum().backward()
    close(h.grad[1], 0.0, FLOAT64)


@pytest.mark.parametrize("exponent", [0.0, 1.25])
def test_puct_equals_the_loop(exponent: float):
    config = replace(CONFIG, length_exponent=exponent, c_puct=0.7)
    parent = TreeNode(visits=7)
    child = TreeNode((1, 2, 3), -4.0, parent=parent, visits=2, total=1.5)
    close(puct(child, config), reference.puct(2, 1.5, -4.0, 3, 7, 0.7, exponent), FLOAT64)


def test_rounds_of_search_and_dpo_learn_the_answer_that_is_rewarded():
    """The example's policy, pi(aa) = 0.2; each round against the one before: it ends above 0.9."""
    draw, logits = random.Random(5), {p: torch.tensor([math.log(q[A]), math.log(q[B])]) for p, q in PROBABILITY.items()}
    config = replace(CONFIG, first_breadth=4, breadth=3)
    for _ in range(12):
        before = {prefix: each.log_softmax(0) for prefix, each in logits.items()}

        def sample(node: TreeNode, told: dict[tuple[Step, ...], torch.Tensor] = before) -> Ending:
            steps: tuple[Step, ...] = node.steps
            log_probs: list[float] = []
            while len(steps) < 2:
                step = A if draw.random() < math.exp(told[steps][0]) else B
                log_probs.append(float(told[steps][0 if step == A else 1]))
                steps = (*steps, step)
            return Ending(steps[node.depth :], tuple(log_probs), float(steps == (A, A)))

        found = [
            p for _ in range(8) if isinstance(many := pairs(searched(config, sample, 6), config), list) for p in many
        ]
        for prefix, old in list(logits.items()):
            here = [p for p in found if p.rejected.steps[:-1] == prefix]
            at = old.clone().requires_grad_()
            for _ in range(20 if here else 0):
                ratios = at.log_softmax(0) - before[prefix]
                places = [[0 if node.step == A else 1 for node in (p.chosen, p.rejected)] for p in here]
                chosen, rejected = ratios[torch.tensor(places)].T
                alpha = torch.tensor([p.smoothing for p in here])
                losses = dpo_loss(
                    chosen, rejected, torch.zeros(1), torch.zeros(1), beta=0.5, loss="sigmoid", label_smoothing=alpha
                )
                (slope,) = torch.autograd.grad(losses.mean(), at)
                at = (at - 0.5 * slope).detach().requires_grad_()
            logits[prefix] = at.detach()
    assert math.exp(logits[()].log_softmax(0)[0] + logits[(A,)].log_softmax(0)[0]) > 0.9


def random_sample(draw: random.Random) -> Sample:
    def sample(node: TreeNode) -> Ending:
        steps, left = [], 4 - node.depth
        while left > 0:
            steps.append(draw.choice([A, B, C]))
            left -= 1
            if draw.random() < 0.2:
                break
        return Ending(tuple(steps), (math.log(1 / 3),) * len(steps), draw.random())

    return sample


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), depth=st.integers(1, 5))
def test_an_expanded_node_is_the_sum_of_its_children(seed: int, depth: int):
    root = searched(replace(CONFIG, first_breadth=3, breadth=3, depth=depth), random_sample(random.Random(seed)), 30)
    for node in nodes(root):
        assert 0 <= node.value <= 1
        assert node.depth <= depth
        if node.expanded:
            assert node.visits == sum(child.visits for child in node.children)
            close(node.total, sum(child.total for child in node.children), 1e-9)
            assert node.solutions == sum(child.solutions for child in node.children)


def test_without_exploration_the_best_value_is_followed():
    root = searched(replace(CONFIG, first_breadth=3), random_sample(random.Random(3)), 1)
    best = max(root.children, key=lambda child: child.value)
    before = best.visits
    leaf = simulate(root, replace(CONFIG, c_puct=0.0))
    assert leaf is best or (leaf is None and best.visits == before + 1)


def test_with_exploration_alone_visits_are_proportional_to_priors():
    """Terminal children of prior 0.6, 0.3, 0.1 and equal rewards, visited 2,000 times, to 5 %."""
    config, root = replace(CONFIG, c_puct=1e6), TreeNode()
    priors = [0.6, 0.3, 0.1]
    grow(root, [Ending((step,), (math.log(p),), 0.5) for step, p in zip((A, B, C), priors, strict=True)])
    for _ in range(2000):
        assert simulate(root, config) is None
    for child, prior in zip(root.children, priors, strict=True):
        assert abs(child.visits / root.visits - prior) < 0.05 * prior


def test_once_every_answer_is_in_each_value_is_its_true_mean():
    """Three levels, three actions, drawn rewards; endings are served without replacement."""
    draw = random.Random(11)
    rewards = {steps: draw.random() for steps in itertools.product((A, B, C), repeat=3)}
    left = set(rewards)

    def sample(node: TreeNode) -> Ending | None:
        open_ = sorted(steps for steps in left if steps[: node.depth] == node.steps)
        if not open_:
            return None
        steps = draw.choice(open_)
        left.remove(steps)
        return Ending(steps[node.depth :], (math.log(1 / 3),) * (3 - node.depth), rewards[steps])

    root = TreeNode()
    grow(root, [one for _ in range(27) if (one := sample(root)) is not None])
    assert not left
    for _ in range(2):
        for node in list(nodes(root)):
            if not node.expanded and node.terminal is None:
                grow(node, [])
    assert len(list(nodes(root))) == 1 + 3 + 9 + 27
    for node in nodes(root):
        mean = [reward for steps, reward in rewards.items() if steps[: node.depth] == node.steps]
        close(node.value, sum(mean) / len(mean), 1e-12)
    found = pairs(root, replace(CONFIG, pairs_from="all", min_margin=0.0, smoothing="none", pairs_per_prompt=99))
    assert len(found) > 3
    for p in found:
        assert isinstance(p, Siblings)
        assert p.margin > 0


def tree(**children: tuple[int, float]) -> TreeNode:
    root = TreeNode()
    for name, (visits, total) in children.items():
        step = {"a": A, "b": B, "c": C}[name]
        root.children.append(TreeNode(step, parent=root, depth=1, visits=visits, total=total, terminal=total / visits))
    root.expanded = True
    return root


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (tree(a=(2, 2.0)), "no two steps to choose from"),
        (tree(a=(2, 2.0), c=(1, 0.0)), "no two steps to choose from"),  # c was cut off
        (tree(a=(2, 1.0), b=(1, 0.5)), "tie"),
        (tree(a=(2, 1.0), b=(1, 0.45)), "margin too small"),
        (tree(a=(1, 1.0), b=(1, 0.0)), "too uncertain"),
        (tree(a=(1, 1.0), b=(3, 0.0)), "too uncertain"),
        (TreeNode(), "no step was expanded"),
    ],
)
def test_why_a_tree_gives_no_pair(root: TreeNode, reason: str):
    assert pairs(root) == reason


def test_other_reasons():
    root = tree(a=(4, 4.0), b=(1, 0.0))
    assert pairs(root, replace(CONFIG, min_visits=2)) == "too few visits"
    assert pairs(root, replace(CONFIG, only_right=True, right_from=1.5)) == "the walk does not end right"
    assert pairs_of(root, CONFIG, whole=lambda _: True, text=lambda _: "same") == "equal texts"
    found = pairs(root, replace(CONFIG, smoothing="none", only_right=True))
    assert isinstance(found, list)
    assert found[0].smoothing is None


def test_a_leaf_whose_samples_have_no_reward_stays_a_leaf():
    root = TreeNode()
    grow(root, [])
    assert simulate(root, CONFIG) is root


def test_the_walk_goes_by_visits_then_by_value():
    root = tree(a=(2, 0.5), b=(2, 1.0), c=(1, 1.0))
    assert [node.step for node in walk(root)] == [(), B]
