"""Stage ``evaluate@POLICY``: let all judges score what the policy and its snapshots answered."""

from collections.abc import Mapping
from pathlib import Path

from tasks.evaluation.answer_files import ANSWERS
from tasks.evaluation.figures import flat
from tasks.evaluation.judged import evaluate
from tasks.evaluation.judging import open_scorers
from tasks.evaluation.kept import Kept
from tasks.running.hardware import peak_memory_gib
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Judge the stored answers; the policy itself is not needed."""
    policy = stage.name.partition("@")[2]
    models, folder = open_scorers(stage.params), Path("evaluations") / policy
    rows, figures = evaluate(stage, Kept(stage), models, policy, "validation", answered=ANSWERS / policy, folder=folder)
    stage.record.table("answers", flat(rows))
    return {**figures, "peak_memory_gib": peak_memory_gib()}
