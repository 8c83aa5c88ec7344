"""What the stages that sample share."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignflow.data.collate import collate
from alignflow.memory import Budget
from alignflow.models.base import identify
from alignflow.models.load import load_base
from alignflow.models.roles import SharedBase
from alignflow.sampling.own import Response
from alignflow.sampling.vllm import VLLMUnavailable
from alignflow.types import Example
from tasks.__main__ import main
from tasks.params.edit import override
from tasks.params.read import load
from tasks.tools import doctor
from tasks.training import sampling
from tasks.training.ends import eos_ids
from tasks.training.rewards import learned_scores
from tasks.training.sampling import answering, decode
from tests.close import close
from tests.tiny import EOS, SHAPE, disturb, four_roles

TURNS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def open_with_end(tiny: Path, tmp_path: Path) -> SharedBase:
    """Open the tiny model with a template that ends turns with a token that its tokenizer does not call special."""
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<end>"])
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(folder)
    return SharedBase(
        load_base(identify(str(folder), None, converted=folder), quantization="none", dtype="float32"), SHAPE
    )


def test_the_template_s_end_of_turn_and_end_of_sequence_both_end_a_response(tiny: Path, tmp_path: Path):
    models = open_with_end(tiny, tmp_path)
    tokenizer = models.base.tokenizer
    assert set(tokenizer.convert_tokens_to_ids(["<end>", EOS])) == set(eos_ids(models))


def test_a_response_is_read_without_the_token_that_ended_it(tiny: Path, tmp_path: Path):
    models = open_with_end(tiny, tmp_path)
    tokenizer = models.base.tokenizer
    word = tokenizer("so", add_special_tokens=False)["input_ids"]
    whole, cut = (*word, tokenizer.convert_tokens_to_ids("<end>")), tuple(word)
    responses = [Response(tokens, tokens == cut, (-1.0,) * len(tokens)) for tokens in (whole, cut)]
    assert decode(models, responses) == ["so", "so"]


@pytest.mark.parametrize(
    ("merged", "free", "plain"),
    [("auto", 294_912, True), ("auto", 294_911, False), ("auto", None, True), (True, 0, True), (False, 2**40, False)],
)
def test_plain_layers_are_taken_where_the_setting_and_the_memory_allow(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, merged: str | bool, free: int | None, plain: bool
):
    """Two layers of q 64x64, k and v 32x64, o 64x64, gate, up and down 64x128: 73,728 weights of 2 bytes in bfloat16.

    They may take half of what is free.
    """
    models = four_roles(tiny, "nf4", "bfloat16", torch.bfloat16)
    monkeypatch.setattr(sampling, "free_memory", lambda _: free)
    with answering(models, "policy", merged) as model:
        assert model is models.base.model
        assert models._active == "policy"
        assert any(layer in set(model.modules()) for layer in models._layers) != plain
    assert models._active == "base"


def test_the_free_memory_of_this_machine_is_more_than_nothing():
    import psutil

    free = sampling.free_memory(torch.device("cpu"))
    assert free is None or 0 < free <= psutil.virtual_memory().total


NO_GPU = "vLLM needs a CUDA device, but models are on cpu here; set sampling.engine: own to do without it"


@pytest.fixture
def without_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a project that asks for vLLM, on a machine without a GPU."""
    shutil.copy("params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    override(Path("params.yaml"), ["sampling.engine=vllm", "sampling.importance_cap=2"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_stage_says_at_its_start_that_the_engine_cannot_work_here(
    without_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("tasks.__main__.check_inputs", lambda inputs: None)
    with pytest.raises(SystemExit) as failed:
        main(["grpo"])
    assert failed.value.code == 1
    assert capsys.readouterr().err == f"[grpo] error: {NO_GPU}\n"


def test_doctor_says_that_the_engine_cannot_work_here(without_gpu: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "LOOKS", {"sampling": doctor.LOOKS["sampling"]})
    assert doctor.diagnose({}) == [("sampling", False, f"VLLMUnavailable: {NO_GPU}")]
    override(Path("params.yaml"), ["sampling.engine=own"])
    assert doctor.diagnose({}) == [("sampling", True, "sampling.engine: own can work here")]


def test_an_engine_that_cannot_work_here_is_told_and_never_replaced(tiny: Path, tmp_path: Path):
    shutil.copy("params.yaml", tmp_path)
    override(tmp_path / "params.yaml", ["sampling.engine=vllm", "sampling.importance_cap=2"])
    models = four_roles(tiny)
    models.base = replace(models.base, device=torch.device("cpu"))
    with pytest.raises(VLLMUnavailable):
        sampling.sample(models, "policy", [(5, 6)], load(tmp_path / "params.yaml"), seed=0)


def test_reward_models_read_every_end_as_the_template_s(tiny: Path, tmp_path: Path):
    """The model ends with the template's <end> or its own end-of-sequence; a response that was cut off stays so."""
    models = open_with_end(tiny, tmp_path)
    end, other = models.base.tokenizer.convert_tokens_to_ids(["<end>", EOS])
    models.add("reward_model")
    disturb(models, "reward_model")
    models.add_head("reward_model", seed=1)
    (tmp_path / "normalization.json").write_text('{"mean": 0.5, "std": 2.0, "trained": true}')
    examples = [Example((5, 6), response) for response in ((7, 8, end), (7, 8, other), (7, 8), (other,))]
    read = [Example((5, 6), response) for response in ((7, 8, end), (7, 8, end), (7, 8), (end,))]
    with torch.no_grad():
        expected, raw = (models.scores("reward_model", collate(given)) for given in (read, examples))
    assert not expected.equal(raw)
    found = learned_scores(models, "reward_model", tmp_path, examples, Budget(512, pytest.fail))
    close(found, (expected - 0.5) / 2)
