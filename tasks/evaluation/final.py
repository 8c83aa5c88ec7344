"""The test side at the end: every chosen policy answers it and all judges score, over one base.

Everything lies in ``final/``, in folders of the same names as beside it.
"""

import json
from pathlib import Path
from typing import Any

from alignflow import distributed
from alignflow.models.roles import SharedBase
from tasks.evaluation.answer_files import ANSWERS, read_figures, write_answers
from tasks.evaluation.answers import add_policy, answer, open_reference, rows_to_answer
from tasks.evaluation.judged import evaluate
from tasks.evaluation.judging import add_scorers
from tasks.evaluation.kept import Kept
from tasks.evaluation.openings import OPENINGS, Opening, check, opening, record
from tasks.paths import FINAL, TEST
from tasks.policies import REFERENCE, adapter_of, in_order
from tasks.running.stage import Stage

SIDE = TEST.stem
METRICS = FINAL / "metrics/evaluate"


def open_test_side(stage: Stage) -> Opening:
    """Record the opening, then let every policy answer, without snapshots, and every judge score.

    Returns:
        The opening; a stage that goes on after a stop has its first one.

    Raises:
        NoTestSide: there is nothing to open.
    """
    check(Path(), stage.params)
    kept, models = Kept(stage), open_reference(stage.params)
    one = Opening.model_validate(kept.once("opening", lambda: _open(stage)))
    distributed.barrier()  # no process reads a row before the opening is recorded
    policies = in_order(stage.params.policies)
    for policy in policies:
        _answer(stage, kept, models, policy)
    distributed.barrier()  # the answers are written
    add_scorers(models, stage.params)
    for policy in policies:
        _judge(stage, kept, models, policy)
    return one


def _open(stage: Stage) -> dict[str, Any]:
    one = opening(stage.params, in_order(stage.params.policies))
    if distributed.is_main():
        record(one)
    stage.say(f"opens the test side; recorded in {OPENINGS}")
    return one.model_dump(mode="json")


def _answer(stage: Stage, kept: Kept, models: SharedBase, policy: str) -> None:
    """Let a policy answer the test side; what it still knows was measured before, on other texts."""
    params = stage.params
    budget = stage.budget("passes", params.reward_model.micro_batch_tokens)
    role, rows = add_policy(models, policy, adapter_of(policy, params)), rows_to_answer(params, SIDE)
    answers = answer(stage, kept, models, policy, role, rows, budget, at_reference=policy == REFERENCE)
    if distributed.is_main():
        write_answers(FINAL / ANSWERS / policy, [answers], [], read_figures(ANSWERS / policy))


def _judge(stage: Stage, kept: Kept, models: SharedBase, policy: str) -> None:
    _, figures = evaluate(
        stage, kept, models, policy, SIDE, answered=FINAL / ANSWERS / policy, folder=FINAL / "evaluations" / policy
    )
    if distributed.is_main():
        METRICS.mkdir(parents=True, exist_ok=True)
        (METRICS / f"{policy}.json").write_text(json.dumps(figures, indent=2) + "\n")
