"""Stage ``test``: open the test side once, at the end: every chosen policy answers it, all judges score, and compare.

DVC does not know this stage; `alignflow test` runs it.
"""

from collections.abc import Mapping
from pathlib import Path

from alignflow import distributed
from tasks.comparison.tracked import compare_tracked
from tasks.evaluation.final import open_test_side
from tasks.evaluation.llm import write_judgements
from tasks.evaluation.openings import OPENED, recorded, sentence
from tasks.paths import FINAL
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Open, then compare; the file of the opening comes last, so a complete result has it."""
    opened = open_test_side(stage)
    if not distributed.is_main():
        return {}
    every = recorded(Path())
    write_judgements(FINAL, stage.params, stage.say)
    metrics = compare_tracked(stage, evaluated=FINAL, opened=sentence(opened, every))
    OPENED.write_text(opened.model_dump_json(indent=2) + "\n")
    return {**metrics, "openings": float(sum(each.rows == opened.rows for each in every))}
