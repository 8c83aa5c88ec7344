"""The recipe 'To add an algorithm' of docs/architecture.md names every file that an algorithm has to touch."""

import re

import pytest

from tasks.policies import POLICIES
from tests.pipeline import ROOT

RECIPE = {
    "alignflow/algorithms/<name>.py",
    "tasks/<name>.py",
    "tasks/params/sections.py",
    "params.yaml",
    "tasks/policies.py",
    "dvc.yaml",
    "README.md",
    "docs/equations.md",
    "docs/tree.md",
    "docs/metrics.md",
    "tests/alignflow/algorithms/test_<name>.py",
    "tests/oracle/test_trl_<name>.py",
}
"""Files of the commit that added RLOO (the tree stood in README.md then), and docs/metrics.md for its metrics."""
ALGORITHMS = {name: policy.title for name, policy in POLICIES.items() if policy.learns}
ORACLE = "tests/oracle/test_trl.py"  # of the algorithms that came first, in one file
ELSEWHERE = {("tests/oracle/test_trl_<name>.py", name): ORACLE for name in ("dpo", "ppo", "grpo")}
OF_SFT = "the control is SFT's algorithm with other steps"
ABSENT = {
    ("tests/oracle/test_trl_<name>.py", "iterative_dpo"): "TRL has no rounds; the loss is DPO's",
    ("tests/oracle/test_trl_<name>.py", "step_dpo"): "TRL has no search for errors; the loss is DPO's",
    ("tests/oracle/test_trl_<name>.py", "mcts_dpo"): "TRL has no tree search; the loss is DPO's",
    ("alignflow/algorithms/<name>.py", "sft_more"): OF_SFT,
    ("docs/equations.md", "sft_more"): OF_SFT,
    ("tests/alignflow/algorithms/test_<name>.py", "sft_more"): OF_SFT,
    ("tests/oracle/test_trl_<name>.py", "sft_more"): OF_SFT,
}


def recipe() -> set[str]:
    """Return the files in the first column of the table."""
    text = (ROOT / "docs/architecture.md").read_text().partition("\n## To add an algorithm\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {file for row in rows for file in re.findall(r"`([^`]+)`", row)}


def test_the_recipe_lists_the_files_that_added_rloo():
    assert recipe() == RECIPE


def test_the_algorithms_are_those_of_the_table_of_policies():
    assert set(ALGORITHMS) == {"dpo", "iterative_dpo", "step_dpo", "mcts_dpo", "ppo", "grpo", "rloo", "kto", "sft_more"}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("file", sorted(RECIPE))
def test_every_file_of_the_recipe_names_every_algorithm(file: str, name: str):
    if (file, name) in ABSENT:
        pytest.skip(ABSENT[file, name])
    path = ROOT / ELSEWHERE.get((file, name), file.replace("<name>", name))
    assert path.exists(), f"{path.relative_to(ROOT)} does not exist"
    said = rf"(?<![A-Za-z_])(?i:{name}|{ALGORITHMS[name]})(?![a-z_])"  # also in PPOConfig
    assert re.search(said, path.read_text()), f"{path.relative_to(ROOT)} does not name {name}"


def test_no_other_file_of_the_code_names_rloo():
    files = [f for top in ("alignflow", "tasks", "flows") for f in (ROOT / top).rglob("*")]
    files = [f for f in files if f.suffix in {".py", ".j2", ".yaml"}] + [ROOT / "params.yaml", ROOT / "dvc.yaml"]
    found = {f.relative_to(ROOT).as_posix() for f in files if "rloo" in f.read_text().lower()}
    assert found == {
        "alignflow/algorithms/rloo.py",
        "tasks/rloo.py",
        "tasks/params/sections.py",
        "params.yaml",
        "tasks/policies.py",
        "dvc.yaml",
    }
