"""The policies that a training kept on its way."""

import json
from dataclasses import dataclass
from pathlib import Path

from tasks.params.sections import Params
from tasks.policies import POLICIES, REFERENCE, adapter_of


@dataclass(frozen=True)
class PolicySnapshot:
    """A policy at some point of its training."""

    step: int
    """Optimiser steps or rollout batches so far, over all rounds of iterative DPO."""
    label: str
    folder: Path


def trajectory_of(policy: str, params: Params) -> list[PolicySnapshot]:
    """Return the kept policies of a training in order, the final one last; none of a policy that was not trained here.

    The rounds of iterative DPO are its snapshots; other methods keep some along the way.
    """
    final = adapter_of(policy, params)
    if final is None or policy == REFERENCE:
        return []
    if POLICIES[policy].in_rounds:
        folders = {name: final.parent / name for name in params.iterative_dpo.rounds}
        steps = [_steps(folder) for folder in folders.values()]
        return [PolicySnapshot(sum(steps[: i + 1]), *item) for i, item in enumerate(folders.items())]
    kept = {int(folder.name.removeprefix("step-")): folder for folder in (final / "snapshots").glob("step-*")}
    every = {**dict(sorted(kept.items())), _steps(final): final}
    return [PolicySnapshot(step, f"step {step}", folder) for step, folder in every.items()]


def _steps(folder: Path) -> int:
    steps: int = json.loads((folder / "training.json").read_text())["steps"]
    return steps
