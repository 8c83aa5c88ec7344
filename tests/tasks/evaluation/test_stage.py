"""The stages ``answer`` and ``evaluate``: judges come from their table, and how memory is saved changes no answer."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import judges
from tasks.params.edit import override
from tests.close import close
from tests.tasks.small_project import set_up, stage, working_in


@pytest.fixture(scope="module")
def place(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with everything that ``evaluate`` needs."""
    folder = tmp_path_factory.mktemp("project")
    set_up(folder, tiny)
    override(folder / "params.yaml", [f"{name}.steps=1" for name in ("sft", "reward_model", "judge_model")])
    with working_in(folder):
        for name in ("base", "prepare", "sft", "reward_model", "judge_model"):
            stage(name)
        yield folder


def answers(policy: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"evaluations/{policy}/responses.jsonl").read_text().splitlines()]


def test_a_reward_model_judges_once_the_table_has_its_entry(place: Path, monkeypatch: pytest.MonkeyPatch):
    """It is the second reward model at another scale: mean 1 and deviation 4 instead of the model's own."""
    third = Path("artifacts/third_model")
    shutil.copytree("artifacts/judge_model", third)
    scale = json.loads((third / "normalization.json").read_text())
    (third / "normalization.json").write_text(json.dumps({**scale, "mean": 1.0, "std": 4.0}))
    entry = judges.Judge("third reward model", judges.Kind.REWARD_MODEL, third, "The third reward model")
    monkeypatch.setitem(judges.JUDGES, "third_model", entry)  # type: ignore[arg-type]
    stage("answer", "base")
    found = stage("evaluate", "base")
    rows = answers("base")
    assert {tuple(row["judges"]) for row in rows} == {("judge_model", "third_model", "concise_answer")}
    values = [row["judges"]["third_model"] for row in rows]
    assert len(set(values)) > 1
    close(values, [(row["judges"]["judge_model"] * scale["std"] + scale["mean"] - 1) / 4 for row in rows])
    close(found["judge/third_model/mean"], sum(values) / len(values))


def test_how_memory_is_saved_changes_no_byte_of_an_evaluation(place: Path):
    """In one process; test_processes has what several processes do."""
    stage("answer", "reference")
    found, kept, before = stage("evaluate", "reference"), Path("params.yaml").read_text(), written()
    override(
        Path("params.yaml"),
        ["memory.gradient_checkpointing=true", "memory.share_base=true", "memory.optimizer=paged_adamw_8bit"],
    )
    stage("answer", "reference")
    again = stage("evaluate", "reference")
    Path("params.yaml").write_text(kept)
    assert written() == before
    assert {**again, "peak_memory_gib": 0} == {**found, "peak_memory_gib": 0}


def written() -> dict[str, bytes]:
    """Return what the evaluation of the reference wrote, which it writes anew each time."""
    paths = [path for path in Path("evaluations/reference").rglob("*") if path.is_file()]
    found = {path.name: path.read_bytes() for path in paths}
    assert set(found) == {"responses.jsonl", "trajectory.json"}
    shutil.rmtree("evaluations/reference")
    return found
