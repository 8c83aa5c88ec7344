"""Paths: the project's home for state that outlives a checkout, and names inside a checkout."""

import os
import subprocess
from functools import cache
from pathlib import Path

IDENTITY = Path("artifacts/base/identity.json")
CONVERTED = Path("models")
PREPARED = Path("data/prepared")
TRAIN, JUDGE, VALIDATION = (PREPARED / f"{side}.jsonl" for side in ("train", "judge", "validation"))
TEST = PREPARED / "test.jsonl"
"""For the stage ``test`` alone; empty where data.test_fraction is 0."""
UNPAIRED = PREPARED / "unpaired.jsonl"
"""Bad answers to training prompts that have no good answer; no other file holds them. Empty if there are none."""
RULES = Path("rewards")
"""The user's own rules."""
SFT = Path("artifacts/sft")
REWARD_MODEL = Path("artifacts/reward_model")
JUDGE_MODEL = Path("artifacts/judge_model")
LOCK = Path("dvc.lock")
"""What DVC knows of every stage: code, settings, data and outputs."""
FINAL = Path("final")
"""What the stage ``test`` makes, in folders of the same names as beside it."""


@cache
def home() -> Path:
    """Return the folder for state shared by every workspace of this project (not versioned).

    It holds run workspaces, checkpoints, undelivered tracking records, the local MLflow database and the
    device lock. A flow passes it on in ``ALIGNFLOW_HOME``; otherwise it is in the main checkout, also
    when called from a linked git worktree.
    """
    given = os.environ.get("ALIGNFLOW_HOME")
    if given:
        return Path(given).resolve()
    found = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir", "--show-toplevel"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        return Path.cwd() / ".alignflow"
    common, checkout = map(Path, found.stdout.splitlines())
    # the files of a submodule's repository lie inside the repository above it
    return (common.parent if common.name == ".git" else checkout) / ".alignflow"


def make_home() -> Path:
    """Return that folder after making it where it is missing; nobody else can look into it."""
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    return home()


def stage_file(folder: str, stage: str, suffix: str) -> Path:
    """Return e.g. ``plots/iterative_dpo/round-1.csv`` for stage ``iterative_dpo@round-1``."""
    return Path(folder) / f"{stage.replace('@', '/')}{suffix}"
