"""The file ``pairs.jsonl`` of a stage that makes its own pairs: what made each of them, or why there is none."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow import distributed
from alignflow.models.base import load_identity
from alignflow.models.roles import SharedBase
from tasks.paths import IDENTITY
from tasks.running.stage import Stage


def origin(stage: Stage, models: SharedBase, *, start: str, seed: int) -> dict[str, Any]:
    """Return what all pairs of a stage have in common: policy, reward model, base and sampling."""
    return {
        "policy": start,
        "policy_hash": models.fingerprint("policy")[:16],
        "reward_model_hash": models.fingerprint("reward_model")[:16],
        "base_hash": load_identity(IDENTITY).sha256[:16],
        "sampling": {**stage.params.sampling.model_dump(), "seed": seed},
    }


def write_lineage(stage: Stage, lineage: Sequence[Mapping[str, Any]]) -> None:
    """Write ``pairs.jsonl`` into the stage's folder."""
    path = Path("artifacts") / stage.name.replace("@", "/") / "pairs.jsonl"
    if distributed.is_main():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lineage))


def dropped(lineage: Sequence[Mapping[str, Any]]) -> str:
    """Return how often each reason left no pair, the most frequent first."""
    counts = Counter(row["dropped"] for row in lineage if row["dropped"] is not None)
    return ", ".join(f"{reason}: {n}" for reason, n in counts.most_common())


class NoPairs(ValueError):
    """A stage that makes its own pairs found none to train on."""
