"""Stage ``mcts_dpo``: trees over the answers of a tiny model; an answer is right if it has no z."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.params.edit import override
from tests.close import close
from tests.tasks.small_project import set_up, stage, weights, working_in

RULE = '''
def no_z(prompt, response, answer):
    """Right without a z."""
    return -1.0 if "z" in response else 1.0
'''
SETTINGS = [
    "policies=dpo,mcts_dpo",
    "sampling.max_response_length=40",
    "rewards.reward_model=0",
    "rewards.rules.no_z=1",
    "rewards.missing_eos_penalty=0",
    "mcts_dpo.delimiter=;",
    "mcts_dpo.prompts=6",
    "mcts_dpo.simulations=5",
    "mcts_dpo.first_breadth=6",
    "mcts_dpo.breadth=4",
    "mcts_dpo.pairs_from=all",
    "mcts_dpo.smoothing=none",
    "mcts_dpo.steps=3",
    "mcts_dpo.batch_size=2",
    "mcts_dpo.learning_rate=1e-2",
]


@pytest.fixture(scope="module")
def started(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    set_up(folder, tiny)
    (folder / "rewards").mkdir()
    (folder / "rewards/no_z.py").write_text(RULE)
    with working_in(folder):
        override(Path("params.yaml"), SETTINGS)
        for name in ("base", "prepare", "sft", "reward_model", "rules"):
            stage(name)
    return folder


@pytest.fixture
def place(started: Path, tmp_path: Path) -> Iterator[Path]:
    folder = Path(shutil.copytree(started, tmp_path / "project"))
    with working_in(folder):
        yield folder


def lineage() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("artifacts/mcts_dpo/pairs.jsonl").read_text().splitlines()]


def test_siblings_of_a_tree_become_pairs(place: Path):
    found = stage("mcts_dpo")
    lines = lineage()
    kept = [line for line in lines if line["dropped"] is None]
    assert found["pairs"] == len(kept) > 0
    assert len({line["prompt_id"] for line in lines}) == 6
    for line in kept:
        assert line["q"][0] - line["q"][1] >= 0.1
        assert line["chosen"].strip() != line["rejected"].strip()
        values = [one["q"] for one in line["siblings"]]
        assert max(values) >= line["q"][0]
        assert line["tree"]["solutions"] <= line["tree"]["visits"]
        assert line["prefix"].count(";") >= line["depth"] - 1 - line["prefix"].count("\n")
        if "z" in line["chosen"]:
            assert line["q"][0] == -1.0
        assert line["smoothing"] is None
    close(found["depth/mean"], sum(line["depth"] for line in kept) / len(kept))
    before, after = weights("artifacts/sft"), weights("artifacts/mcts_dpo")
    assert any(not tensor.equal(before[name]) for name, tensor in after.items())


def test_smoothing_by_visits_is_that_of_each_pair_and_the_same_pairs_come_again(place: Path):
    override(Path("params.yaml"), ["mcts_dpo.smoothing=visits", "mcts_dpo.simulations=12"])
    found = stage("mcts_dpo")
    first = lineage()
    kept = [line for line in first if line["dropped"] is None]
    for line in kept:
        chosen, rejected = line["visits"]
        assert line["smoothing"] == rejected / (chosen + rejected) < 0.5
    close(found["smoothing/mean"], sum(line["smoothing"] for line in kept) / len(kept))
    shutil.rmtree("artifacts/mcts_dpo")
    stage("mcts_dpo")
    assert lineage() == first
