"""Stage ``evaluate@POLICY``: answer held-out prompts, judge the answers, and measure what training has forgotten."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow import distributed
from alignflow.memory import Budget
from tasks.evaluation.answers import add_policy, answer, kl_temperature, rows_to_answer
from tasks.evaluation.capability import capability
from tasks.evaluation.judging import judge, open_scorers
from tasks.evaluation.table import figures, flat, table
from tasks.evaluation.trajectory import answer_snapshots, points, trajectory_of
from tasks.policies import REFERENCE, adapter_of
from tasks.running.hardware import peak_memory_gib
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Sample from the policy and its snapshots, judge all answers in one pass, and measure its capabilities."""
    policy, params, section = stage.name.partition("@")[2], stage.params, stage.params.evaluate
    asked = rows_to_answer(params)
    models, trajectory = open_scorers(params), trajectory_of(policy, params)
    budget = Budget(params.reward_model.micro_batch_tokens, stage.announce)
    samples = section.samples_per_prompt
    stage.say(f"answers {len(asked) // samples} unseen prompts, {samples} times each")
    role = add_policy(models, "policy", adapter_of(policy, params))
    final = answer(models, role, params, asked, budget, at_reference=policy == REFERENCE)
    answers = [final, *answer_snapshots(stage, models, trajectory[:-1], asked, budget)]
    scores = judge(params, models, answers, budget)
    rows = table(final, scores[0], section)
    if distributed.is_main():
        _write(Path("evaluations") / policy, rows, points(trajectory, answers, scores, section))
    stage.record.table("answers", flat(rows))
    known = capability(models, role, section, budget)
    return {**figures(rows), "kl/temperature": kl_temperature(section), **known, "peak_memory_gib": peak_memory_gib()}


def _write(folder: Path, rows: Sequence[Mapping[str, Any]], trajectory: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "responses.jsonl").write_text(lines, encoding="utf-8")
    (folder / "trajectory.json").write_text(json.dumps(trajectory, indent=2) + "\n")
