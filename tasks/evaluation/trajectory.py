"""The policies that a training kept on its way, and what their answers are worth."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from alignflow.memory import Budget
from alignflow.models.roles import SharedBase
from tasks.evaluation.answers import PolicyAnswers, add_policy, answer
from tasks.evaluation.judging import AnswerScores
from tasks.params.sections import Evaluate, Params
from tasks.policies import POLICIES, REFERENCE, adapter_of
from tasks.running.stage import Stage


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


def answer_snapshots(
    stage: Stage,
    models: SharedBase,
    snapshots: Sequence[PolicySnapshot],
    rows: Sequence[Mapping[str, Any]],
    budget: Budget,
) -> list[PolicyAnswers]:
    """Return what each snapshot answers to the first prompts."""
    section = stage.params.evaluate
    first, found = rows[: section.samples_per_prompt * section.trajectory_prompts], []
    for snapshot in snapshots:
        stage.say(f"answers {len(first)} of them after {snapshot.label}")
        role = add_policy(models, snapshot.label, snapshot.folder)
        found.append(answer(models, role, stage.params, first, budget))
    return found


def points(
    trajectory: Sequence[PolicySnapshot],
    answers: Sequence[PolicyAnswers],
    scores: Sequence[AnswerScores],
    section: Evaluate,
) -> list[dict[str, Any]]:
    """Return the points of a trajectory: what the answers to the first prompts are worth, each prompt's mean.

    Args:
        trajectory: as ``trajectory_of`` returns it; it may be empty.
        answers: of the final policy first, then of each earlier snapshot in order.
        scores: of these answers.
        section: how many prompts count and how many answers each has.
    """
    in_order = zip([*answers[1:], answers[0]], [*scores[1:], scores[0]], strict=True)
    return [_point(*one, section) for one in zip(trajectory, in_order, strict=False)]


def _point(snapshot: PolicySnapshot, point: tuple[PolicyAnswers, AnswerScores], section: Evaluate) -> dict[str, Any]:
    answered, judged = point
    samples = section.samples_per_prompt
    count = min(samples * section.trajectory_prompts, len(answered.rows))

    def by_prompt(values: Sequence[float]) -> list[float]:
        return [fmean(values[start : start + samples]) for start in range(0, count, samples)]

    return {
        "step": snapshot.step,
        "label": snapshot.label,
        "kl": by_prompt(answered.kl),
        "score": by_prompt(judged.scores),
        "judges": {name: by_prompt(values) for name, values in judged.judges.items()},
        "response_length": by_prompt([len(response.tokens) for response in answered.responses]),
    }
