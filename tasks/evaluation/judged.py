"""From the stored answers of a policy to its evaluation: scores, table, trajectory and figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignflow import distributed
from alignflow.models.roles import SharedBase
from tasks.evaluation.answer_files import read_answers
from tasks.evaluation.figures import figures, points, table
from tasks.evaluation.judging import judge
from tasks.evaluation.kept import Kept
from tasks.running.stage import Stage
from tasks.training.rewards import check_sources, judged_rows


def evaluate(
    stage: Stage, kept: Kept, models: SharedBase, policy: str, side: str, *, answered: Path, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Judge the answers of one policy and write the evaluation; return its table and its figures.

    Args:
        stage: the running stage.
        kept: results of the stage so far.
        models: of ``open_scorers``.
        policy: its name.
        side: of the prepared data that was answered.
        answered: folder of the answers.
        folder: receives the evaluation.
    """
    section = stage.params.evaluate
    found, trajectory, known = read_answers(answered, side)
    rewarded = _rewarded(stage, policy, found[0].rows)
    places = [[i for i, row in enumerate(one.rows) if row["prompt_id"] in rewarded] for one in found]
    answers = [one.only(mine) for one, mine in zip(found, places, strict=True)]
    first = sum(i < section.samples_per_prompt * section.trajectory_prompts for i in places[0])
    scores = judge(stage, kept, models, policy, answers)
    rows = table(answers[0], scores[0], section)
    if distributed.is_main():
        _write(folder, rows, points(trajectory, answers, scores, count=first, samples=section.samples_per_prompt))
    return rows, {**figures(rows), **known}


def _rewarded(stage: Stage, policy: str, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the prompts to which a source of reward applies; only their answers are judged."""
    distinct = list({row["prompt_id"]: row for row in rows}.values())
    check_sources(stage.params, distinct)
    found = {row["prompt_id"] for row in judged_rows(stage.params, distinct)}
    if len(found) < len(distinct):
        stage.say(
            f"{policy}: judges {len(found)} of {len(distinct)} prompts; no rule of rewards.rules applies to the others"
        )
    return found


def _write(folder: Path, rows: Sequence[Mapping[str, Any]], trajectory: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "responses.jsonl").write_text(lines, encoding="utf-8")
    (folder / "trajectory.json").write_text(json.dumps(trajectory, indent=2) + "\n")
