"""Stage ``llm_judge``: an optional language model compares the answers of each policy with those of the reference."""

from collections.abc import Mapping
from pathlib import Path

from tasks.evaluation.llm import write_judgements
from tasks.running.stage import Stage


def work(stage: Stage) -> Mapping[str, float]:
    """Write the judgements; an empty file where no endpoint is set."""
    return write_judgements(Path(), stage.params, stage.say)
