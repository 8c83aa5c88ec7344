"""Measure a policy on tasks of lm-evaluation-harness (extra lm-eval): ``python -m tasks.tools.lm_eval POLICY TASK…``"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tasks.params.read import load
from tasks.policies import POLICIES, adapter_of
from tasks.running.advice import explained
from tasks.running.checks import quiet


def measure(policy: str, names: Sequence[str]) -> None:
    """Print the harness's table, and write its results to ``evaluations/<policy>-lm-eval.json``.

    The tasks run on the same model as every stage: the adapter on the quantised base, in merged layers.

    Raises:
        MissingExtra: lm-eval is not installed.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.utils import make_table
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{error.name} is not installed; run: pip install 'alignflow[lm-eval]'") from None
    from alignflow.models.roles import BASE
    from tasks.training.models import open_models

    params = load(Path("params.yaml"))
    folder, role = adapter_of(policy, params), BASE
    models = open_models(params)
    if folder is not None:
        role = "policy"
        models.add(role, start=folder)
    with models.merged(role):
        wrapped = HFLM(
            pretrained=models.base.model,  # it holds the merged layers now
            tokenizer=models.base.tokenizer,
            backend="causal",
            batch_size=params.sampling.rows,
        )
        results = simple_evaluate(wrapped, tasks=list(names), apply_chat_template=True, log_samples=False)
    path = Path("evaluations") / f"{policy}-lm-eval.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results["results"], indent=2, default=str) + "\n")
    print(make_table(results))


class MissingExtra(ValueError):
    """An optional package is not installed."""


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in POLICIES:
        sys.exit(f"usage: python -m tasks.tools.lm_eval POLICY TASK…, with a policy of: {', '.join(POLICIES)}")
    quiet()
    try:
        measure(sys.argv[1], sys.argv[2:])
    except ValueError as error:
        sys.exit(f"error: {explained(error)}")
