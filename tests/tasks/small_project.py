"""A project of the tiny model and twenty pairs with small settings, and its stages run in this process."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.__main__ import main
from tasks.params.edit import override
from tasks.paths import home
from tasks.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
QUIET = """
from tasks.tracking import recorder
recorder._spawn_delivery = lambda folder: None  # records stay on disk; test_tracking delivers
"""
"""A `sitecustomize` for programs that tests start."""
SMALL = [
    "base.model=base",
    "base.quantization=none",
    "base.dtype=float32",
    "lora.rank=2",
    "data.max_response_length=60",
    "data.validation_fraction=0.4",
    "data.test_fraction=0",
    "data.near_duplicate_threshold=1",
    "sampling.max_response_length=6",
    "reward_model.normalization_prompts=4",
    "judge_model.normalization_prompts=4",
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
    "rloo.batch_size=2",
    "rloo.steps=2",
    "kto.batch_size=3",
    "kto.steps=3",
    "evaluate.prompts=3",
    "evaluate.trajectory_prompts=2",
    "evaluate.samples_per_prompt=2",
    "evaluate.capability_texts=2",
    "evaluate.max_response_length=13",
    *(f"{name}.steps=3" for name in ("sft", "reward_model", "judge_model", "dpo", "iterative_dpo", "sft_more")),
    *(f"{name}.batch_size=2" for name in ("sft", "reward_model", "judge_model", "dpo", "iterative_dpo", "sft_more")),
]


def stage(name: str, *arguments: str) -> dict[str, float]:
    """Run a stage in this process as its program would and return its metrics file."""
    main([name, *arguments])
    return metrics(name, *arguments)


def metrics(name: str, *arguments: str) -> dict[str, float]:
    """Return the metrics file that a stage wrote."""
    path = Path(STAGES[name].metrics, name, *arguments).with_suffix(".json")
    found: dict[str, float] = json.loads(path.read_text())
    return found


def set_up(folder: Path, tiny: Path) -> None:
    """Write model, settings and data into a folder."""
    shutil.copytree(tiny, folder / "base")
    shutil.copy(ROOT / "params.yaml", folder)
    override(folder / "params.yaml", SMALL)
    (folder / "data").mkdir()
    rows = [
        {"prompt": f"what is {i}?", "chosen": f"it is {i}.", "rejected": f"who knows {i}", "margin": i / 10}
        | ({"answer": str(i)} if i % 3 else {})
        for i in range(20)
    ]
    questions = (ROOT / "data/capability.jsonl").read_text().splitlines(keepends=True)
    (folder / "data/capability.jsonl").write_text("".join(questions[:4]))
    (folder / "data/preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Work in a project with a state of its own; its records stay on disk, test_tracking delivers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ALIGNFLOW_HOME", str(folder / "home"))
        patch.setattr("tasks.tracking.recorder._spawn_delivery", lambda _: None)
        home.cache_clear()
        try:
            yield
        finally:
            home.cache_clear()


def weights(folder: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(Path(folder, "adapter_model.safetensors"))
    return found
