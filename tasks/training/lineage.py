"""The file ``pairs.jsonl`` of a stage that makes its own pairs: what made each of them, or why there is none."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from alignflow import distributed
from alignflow.data.encoding import encode_prompt
from alignflow.models.base import load_identity
from alignflow.models.roles import SharedBase
from alignflow.types import Pair
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


def pairs_of_steps(
    stage: Stage, models: SharedBase, lineage: Sequence[Mapping[str, Any]], rewards: Sequence[float], settings: str
) -> tuple[list[Pair], dict[str, float]]:
    """Write the lineage of pairs of steps; return the pairs and how many there are.

    Args:
        stage: the running stage.
        models: with the tokenizer.
        lineage: a line for each pair, and for each prompt without one.
        rewards: that were seen.
        settings: what a pair depends on, in words.

    Raises:
        NoPairs: there is no pair; the message names rewards and settings.
    """
    write_lineage(stage, lineage)
    kept = [line for line in lineage if line["dropped"] is None]
    if not kept:
        raise NoPairs(
            f"no prompt gave a pair of steps ({dropped(lineage)}); the samples earned {min(rewards):.3g} to "
            f"{max(rewards):.3g}, in the middle {median(rewards):.3g}, where {settings}"
        )
    stage.record.table(
        "pairs", [{key: line[key] for key in ("prompt", "prefix", "chosen", "rejected")} for line in kept[:16]]
    )
    pairs = [
        Pair(
            (*encode_prompt(models.base.tokenizer, line["messages"]), *line["prefix_ids"]),
            tuple(line["chosen_ids"]),
            tuple(line["rejected_ids"]),
            smoothing=line.get("smoothing"),
        )
        for line in kept
    ]
    asked, answered = ({line["prompt_id"] for line in lines} for lines in (lineage, kept))
    return pairs, {"pairs": float(len(kept)), "prompts_without_pair": float(len(asked - answered))}


class NoPairs(ValueError):
    """A stage that makes its own pairs found none to train on."""
