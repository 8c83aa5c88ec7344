"""The KL along the answers of a policy."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from alignflow.data.encoding import encode_prompt
from alignflow.memory import Budget
from tasks.evaluation.answers import answer, kl_temperature
from tasks.evaluation.kept import Kept
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
    frame: Any = Mock(params=params, resume=None)
    found = answer(frame, Kept(frame), models, "policy", "policy", ROWS, Budget(1024, print))
    prompts = [encode_prompt(models.base.tokenizer, row["messages"]) for row in ROWS]
    assert kl_temperature(params.evaluate) == measured
    for one, prompt, response in zip(found.kl, prompts, found.tokens, strict=True):
        start, end = len(prompt) - 1, len(prompt) + len(response) - 1
        ids, logs = torch.tensor([[*prompt, *response]]), []
        for role in ("policy", "reference"):
            with models.role(role) as model, torch.no_grad():
                logits = model(input_ids=ids).logits[0, start:end].double()
            logs.append(torch.log_softmax(logits / measured, -1))
        close(one, (logs[0].exp() * (logs[0] - logs[1])).sum())
