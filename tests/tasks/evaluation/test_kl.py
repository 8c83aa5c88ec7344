"""The KL along the answers of a policy."""

import shutil
from pathlib import Path

import pytest
import torch

from alignflow.memory import Budget
from tasks.evaluation.answers import answer, kl_temperature
from tasks.params.edit import override
from tasks.params.read import load
from tests.close import close
from tests.tiny import four_roles

ROWS = [{"messages": [{"role": "user", "content": text}]} for text in ("hi", "what is it?")]


@pytest.mark.parametrize(("sampled", "measured"), [("0.7", 0.7), ("0", 1.0)])
def test_the_kl_is_taken_at_the_temperature_that_sampled_and_at_1_along_greedy_answers(
    tiny: Path, tmp_path: Path, sampled: str, measured: float
):
    params_file = Path(shutil.copy("params.yaml", tmp_path))
    override(params_file, [f"evaluate.temperature={sampled}", "evaluate.max_response_length=5"])
    params, models = load(params_file), four_roles(tiny)
    found = answer(models, "policy", params, ROWS, Budget(1024, print))
    assert kl_temperature(params.evaluate) == measured
    for one, example in zip(found.kl, found.examples, strict=True):
        start, end = len(example.prompt) - 1, len(example.prompt) + len(example.response) - 1
        ids, logs = torch.tensor([[*example.prompt, *example.response]]), []
        for role in ("policy", "reference"):
            with models.role(role) as model, torch.no_grad():
                logits = model(input_ids=ids).logits[0, start:end].double()
            logs.append(torch.log_softmax(logits / measured, -1))
        close(one, (logs[0].exp() * (logs[0] - logs[1])).sum())
