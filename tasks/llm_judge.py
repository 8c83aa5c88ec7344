"""Stage ``llm_judge``: an optional language model compares the answers of each policy with those of the reference."""

import json
from collections.abc import Mapping
from pathlib import Path

from tasks.evaluation.llm import compare_answers, figures
from tasks.policies import REFERENCE, in_order
from tasks.running.stage import Stage

JUDGEMENTS = Path("judgements/llm.jsonl")


def work(stage: Stage) -> Mapping[str, float]:
    """Write the judgements; an empty file where no endpoint is set."""
    section = stage.params.llm_judge
    JUDGEMENTS.parent.mkdir(parents=True, exist_ok=True)
    if section.url is None:
        stage.say("llm_judge.url is null: no judgement is asked for")
    policies = [policy for policy in in_order(stage.params.policies) if policy != REFERENCE]
    rows = compare_answers(section, policies, stage.say) if section.url else []
    JUDGEMENTS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return figures(rows)
