"""The optional engine without vLLM: what it refuses, how it calls the library, how it reads the results.

A fake with the few names that are used replaces the library; the library itself needs a CUDA device.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from alignflow import distributed
from alignflow.models.adapters import AdapterShape
from alignflow.models.roles import SharedBase
from alignflow.sampling import vllm
from alignflow.sampling.vllm import (
    RankTooLarge,
    VLLMError,
    VLLMTooShort,
    VLLMUnavailable,
    adapter_rank,
    generate,
    require,
    response,
)
from tests.close import EXACT, close
from tests.tiny import disturb, open_base

EOS = [2, 7]
SETTINGS: dict[str, Any] = {
    "eos_ids": EOS,
    "max_response_length": 4,
    "temperature": 0.7,
    "seed": 3,
    "rows": 8,
    "longest": 16,
    "memory_fraction": 0.3,
}


def completion(tokens: list[int], reason: str | None) -> Any:
    """Return what vLLM gives of one response; it may contain more likely tokens beside the sampled one."""
    told = [{t: SimpleNamespace(logprob=-0.5 * t), 99: SimpleNamespace(logprob=-0.1)} for t in tokens]
    return SimpleNamespace(token_ids=tokens, finish_reason=reason, logprobs=told)


@pytest.mark.parametrize(
    ("tokens", "reason", "truncated"),
    [([5, 2], "stop", False), ([7], "stop", False), ([5, 6, 4], "length", True), ([5, 6, 7], "length", False)],
)
def test_a_completion_becomes_a_response_with_the_log_probs_of_its_own_tokens(
    tokens: list[int], reason: str, truncated: bool
):
    found = response(completion(tokens, reason), EOS)
    assert (found.tokens, found.truncated) == (tuple(tokens), truncated)
    close(torch.tensor(found.logprobs), [-0.5 * t for t in tokens], EXACT)


@pytest.mark.parametrize(("tokens", "reason"), [([5, 6], "stop"), ([5], "abort"), ([5], None), ([], "stop")])
def test_a_response_that_broke_off_is_not_taken_for_one(tokens: list[int], reason: str | None):
    with pytest.raises(VLLMError, match=f"{len(tokens)} tokens without an end"):
        response(completion(tokens, reason), EOS)


def test_without_a_cuda_device_the_engine_says_so():
    with pytest.raises(VLLMUnavailable, match="vLLM needs a CUDA device, but models are on cpu"):
        require(torch.device("cpu"))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_the_library_the_engine_says_how_to_get_it():
    with pytest.raises(VLLMUnavailable, match=r"pip install 'alignflow\[vllm\]'"):
        require(torch.device("cuda"))


def test_several_processes_are_told_to_take_the_own_engine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(VLLMUnavailable, match="works in a single process"):
        require(torch.device("cuda"))


def test_an_adapter_s_rank_is_rounded_up_to_one_that_the_library_knows():
    assert [adapter_rank(r) for r in (1, 8, 9, 16, 24, 512)] == [8, 8, 16, 16, 32, 512]
    with pytest.raises(RankTooLarge, match=r"rank 513, but vLLM supports at most 512"):
        adapter_rank(513)


class StandIn:
    """Stores its arguments, and answers each prompt with its first token and an end."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.asked = settings, list[dict[str, Any]]()
        ENGINES.append(self)

    def generate(self, prompts: list[Any], settings: list[Any], *, lora_request: Any, use_tqdm: bool) -> list[Any]:
        assert not use_tqdm
        files = [] if lora_request is None else sorted(p.name for p in Path(lora_request.path).iterdir())
        self.asked.append({"settings": settings, "adapter": lora_request, "files": files})
        return [SimpleNamespace(outputs=[completion([p["prompt_token_ids"][0], 2], "stop")]) for p in prompts]


ENGINES: list[StandIn] = []


@pytest.fixture
def models(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SharedBase]:
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams, package.TokensPrompt = StandIn, SimpleNamespace, dict  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, path=path)  # type: ignore[attr-defined]
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(vllm, "require", lambda device: None)
    ENGINES.clear()
    models = open_base(tiny)
    models.add("policy")
    disturb(models, "policy", 1)
    yield models
    vllm._engine.cache_clear()


def test_one_engine_answers_every_call_each_with_an_adapter_of_its_own(models: SharedBase):
    prompts = [[5, 6], [9], [5, 6]]
    found = generate(models, "policy", prompts, **SETTINGS)
    assert [(answer.tokens, answer.truncated) for answer in found] == [((n, 2), False) for n in (5, 9, 5)]
    generate(models, "policy", prompts, **SETTINGS)
    generate(models, "base", prompts, **SETTINGS)
    (engine,) = ENGINES
    assert engine.settings == {
        "model": models.base.identity.load_from,
        "revision": None,
        "dtype": "float32",
        "quantization": None,
        "enable_lora": True,
        "max_lora_rank": 8,
        "max_num_seqs": 8,
        "max_model_len": 16,
        "gpu_memory_utilization": 0.3,
        "logprobs_mode": "processed_logprobs",
    }
    first, second, base = (asked["adapter"] for asked in engine.asked)
    assert first.number != second.number
    assert first.name != second.name
    assert base is None
    assert engine.asked[0]["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert not Path(first.path).exists()


def test_each_row_draws_from_a_stream_of_its_own_and_nothing_narrows_the_distribution(models: SharedBase):
    """The seed of row i is 3 · 1,000,003 + i, as for the own engine."""
    generate(models, "policy", [[5], [5]], **SETTINGS)
    alike = {"temperature": 0.7, "max_tokens": 4, "stop_token_ids": EOS, "logprobs": 0, "detokenize": False}
    expected = [{**alike, "seed": 3_000_009 + i} for i in range(2)]
    assert [vars(one) for one in ENGINES[0].asked[0]["settings"]] == expected


def test_a_prompt_too_long_for_the_setting_is_told_with_its_length(models: SharedBase):
    with pytest.raises(VLLMTooShort, match=r"takes 16 tokens, .* needs 17"):
        generate(models, "policy", [[5] * 13], **SETTINGS)


def test_an_adapter_of_a_rank_that_is_too_large_is_told_before_anything_starts(models: SharedBase):
    models.shape = AdapterShape(rank=1024, alpha=8, target_modules="all-linear")
    with pytest.raises(RankTooLarge, match="1024"):
        generate(models, "policy", [[5]], **SETTINGS)
    assert not ENGINES
