"""Every stage in the order of the pipeline, on the tiny model and twenty pairs, run as its program runs it."""

import json
import runpy
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks import params
from tasks.stage import Stage
from tasks.workspace import home
from tests.close import EXACT, close

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "base.model=base",
    "base.quantization=none",
    "base.dtype=float32",
    "lora.rank=2",
    "data.max_response_length=60",
    "data.eval_fraction=0.4",
    "sampling.max_response_length=6",
    "reward_model.normalization_prompts=4",
    "iterative_dpo.shards=2",
    "iterative_dpo.prompts_per_shard=3",
    "iterative_dpo.min_margin=0.0",
    "iterative_dpo.samples_per_prompt=4",
    "ppo.batch_size=4",
    "ppo.minibatches=2",
    "ppo.steps=2",
    "grpo.batch_size=2",
    "grpo.group_size=4",
    "grpo.minibatches=1",
    "grpo.steps=2",
    "evaluate.prompts=3",
    "evaluate.max_response_length=6",
    *(f"{name}.steps=3" for name in ("sft", "reward_model", "dpo", "iterative_dpo")),
    *(f"{name}.batch_size=2" for name in ("sft", "reward_model", "dpo", "iterative_dpo")),
]


def stage(name: str, *arguments: str) -> dict[str, float]:
    """Run a stage in this process as its program would and return its metrics file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_module(f"tasks.{name}", run_name="__main__")
    metrics: dict[str, float] = json.loads(Path("metrics", name, *arguments).with_suffix(".json").read_text())
    return metrics


def set_up(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder / "base")
    shutil.copy(ROOT / "params.yaml", folder)
    params.override(folder / "params.yaml", SMALL)
    (folder / "data").mkdir()
    rows = [{"prompt": f"what is {i}?", "chosen": f"it is {i}.", "rejected": f"who knows {i}"} for i in range(20)]
    (folder / "data/preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ALIGNFLOW_HOME", str(folder / "home"))
        patch.setattr("tasks.recorder._spawn_delivery", lambda _: None)  # records stay on disk; test_tracking delivers
        home.cache_clear()
        yield folder
    home.cache_clear()


def weights(folder: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(Path(folder, "adapter_model.safetensors"))
    return found


def moved(folder: str, start: str) -> bool:
    there = weights(start)
    return any(not tensor.equal(there[name]) for name, tensor in weights(folder).items() if name in there)


def test_the_base_is_identified_and_the_data_prepared(place: Path):
    assert stage("base")["weight_gib"] > 0
    found = stage("prepare")
    assert found["train_pairs"] + found["eval_pairs"] == found["rows"] == 20
    assert found["dropped"] == 0


def test_sft_stops_on_request_and_the_resumed_run_gives_the_same_adapter(place: Path, monkeypatch: pytest.MonkeyPatch):
    whole = stage("sft")
    expected = weights("artifacts/sft")
    original = Stage.log

    def stopping(self: Stage, step: int, metrics: Mapping[str, float]) -> None:
        original(self, step, metrics)
        if step == 2:
            self.stop()

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "log", stopping)
        with pytest.raises(SystemExit) as stopped:
            stage("sft")
    assert stopped.value.code == 143
    assert len(list((place / "home/checkpoints").glob("sft-*/state.pt"))) == 1
    again = stage("sft")
    for name, tensor in weights("artifacts/sft").items():
        close(tensor, expected[name], EXACT)
    assert (again["steps"], again["loss"]) == (3, whole["loss"])
    assert len(Path("plots/sft.csv").read_text().splitlines()) == 4
    assert not list((place / "home/checkpoints").glob("sft-*/state.pt"))


def test_the_reward_model_brings_its_scale(place: Path):
    found = stage("reward_model")
    assert 0 <= found["eval/accuracy"] <= 1
    scale = json.loads(Path("artifacts/reward_model/normalization.json").read_text())
    assert scale["std"] > 0
    assert moved("artifacts/reward_model", "artifacts/sft")
    assert weights("artifacts/reward_model")["base_model.model.score.weight"].shape == (1, 64)


@pytest.mark.parametrize("name", ["dpo", "ppo", "grpo"])
def test_a_method_trains_away_from_sft(place: Path, name: str):
    found = stage(name)
    assert moved(f"artifacts/{name}", "artifacts/sft")
    assert found["steps"] == (3 if name == "dpo" else 2)
    lines = Path(f"plots/{name}.csv").read_text().splitlines()
    assert len(lines) == 1 + found["steps"]
    if name != "dpo":
        first = dict(zip(lines[0].split(","), lines[1].split(","), strict=True))
        assert abs(float(first["kl/reference"])) < 1e-4, "the policy starts from the reference"


def rounds() -> list[dict[str, Any]]:
    files = sorted(Path("artifacts/iterative_dpo").glob("round-*/pairs.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_rounds_of_iterative_dpo_sample_other_prompts_and_keep_their_lineage(place: Path):
    for name in ("round-1", "round-2"):
        assert stage("iterative_dpo", name)["pairs"] > 0
    assert moved("artifacts/iterative_dpo/round-1", "artifacts/sft")
    assert moved("artifacts/iterative_dpo/round-2", "artifacts/iterative_dpo/round-1")
    lineage = rounds()
    assert len({row["prompt_id"] for row in lineage}) == len(lineage) == 6
    for row in lineage:
        assert len(row["scores"]) == len(row["responses"]) == 4
        if row["dropped"] is None:
            scores = dict(zip(row["responses"], row["scores"], strict=True))
            assert scores[row["chosen"]] == max(row["scores"])
            assert scores[row["rejected"]] == min(row["scores"])


@pytest.mark.parametrize("policy", ["base", "reference", "dpo", "iterative_dpo"])
def test_a_policy_is_evaluated_on_held_out_prompts(place: Path, policy: str):
    found = stage("evaluate", policy)
    answers = [json.loads(line) for line in Path(f"evaluations/{policy}/responses.jsonl").read_text().splitlines()]
    held_out = {json.loads(line)["prompt_id"] for line in Path("data/prepared/eval.jsonl").read_text().splitlines()}
    assert len(answers) == 3
    assert {answer["prompt_id"] for answer in answers} <= held_out
    assert (found["kl/reference"] == 0) == (policy == "reference")
    assert found["kl/reference"] >= 0


def test_a_stage_whose_input_is_missing_says_which(place: Path, capsys: pytest.CaptureFixture[str]):
    shutil.move("artifacts/sft", "aside")
    with pytest.raises(SystemExit) as failed:
        stage("dpo")
    shutil.move("aside", "artifacts/sft")
    assert failed.value.code == 1
    assert "artifacts/sft is missing" in capsys.readouterr().err
